"""A queue rests while nobody can serve its type, and no longer than that is known."""

from __future__ import annotations

import pytest

from workers.consumption import pauses

NOW, PARK_AFTER_S = 1_000.0, 5.0


@pytest.mark.parametrize(
    ("before", "blocked_s", "expected"),
    [
        ({}, 0.0, {}),
        ({}, 5.0, {}),  # a slot sits that out
        ({}, 5.1, {"summarize": 1_005.1}),
        ({"summarize": 1_002.0}, 20.0, {"summarize": 1_020.0}),  # the block was renewed
        ({"summarize": 1_002.0}, 2.0, {"summarize": 1_002.0}),  # a resting one rests to the end
        ({"summarize": 1_002.0}, 0.0, {}),  # a provider is back earlier than it had said
        ({"summarize": 1_002.0}, None, {"summarize": 1_002.0}),  # who knows is away: as told last
        ({"summarize": 1_000.0}, None, {}),  # and still away: jobs wait in slots
        ({}, None, {}),
    ],
)
def test_a_queue_rests_as_long_as_a_block_is_known_to_last(before, blocked_s, expected):
    assert pauses(before, {"summarize": blocked_s}, NOW, PARK_AFTER_S) == expected


def test_each_type_rests_for_itself():
    told = {"summarize": 20.0, "extract": 0.0, "translate": None}
    assert pauses({}, told, NOW, PARK_AFTER_S) == {"summarize": 1_020.0}
