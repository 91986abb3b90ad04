"""What one decision costs, next to others: the short form of `benchmarks.claims`.

make bench
"""

from __future__ import annotations

import pytest
from benchmarks import claims

pytestmark = pytest.mark.bench


def test_cost_of_a_claim(capsys):
    with capsys.disabled():
        print()
        claims.main(["--rounds", "1", "--seconds", "1"])


def test_what_sending_claims_together_saves(capsys):
    with capsys.disabled():
        print()
        claims.main(["--batching", "--rounds", "1", "--seconds", "1"])
