"""The law of a reserving GCRA: what may be granted in any window, and limits to try it with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import strategies as st

#: Six digits are kept of every time in Redis: so much of a second may be gained per grant.
ROUNDING_S = 2e-6

LIMITS = st.one_of(
    st.fixed_dictionaries(
        {"requests_per_minute": st.sampled_from([3.0, 30.0, 500.0])},
        optional={"tokens_per_minute": st.sampled_from([600.0, 10_000.0, 150_000.0])},
    ),
    st.fixed_dictionaries(
        {
            "input_tokens_per_minute": st.sampled_from([600.0, 20_000.0]),
            "output_tokens_per_minute": st.sampled_from([400.0, 8_000.0]),
        },
        optional={"requests_per_minute": st.sampled_from([20.0, 1000.0])},
    ),
)


def worst_excess(
    grants: Iterable[tuple[float, float]], burst: float, *, rounding_s: float = ROUNDING_S
) -> float:
    """By how many seconds of quota the worst window is above the bound; grants are (time, seconds)."""
    ordered = sorted(grants)
    allowance = max(burst, *(seconds for _, seconds in ordered))
    sums = [0.0, *itertools.accumulate(seconds for _, seconds in ordered)]
    worst = -float("inf")
    for i, (first, _) in enumerate(ordered):
        for j in range(i, len(ordered)):
            bound = ordered[j][0] - first + allowance + rounding_s * (j - i + 2)
            worst = max(worst, sums[j + 1] - sums[i] - bound)
    return worst
