"""The measurement of streams runs, in its short form."""

from __future__ import annotations

import pytest
from benchmarks.streams import measure

pytestmark = pytest.mark.bench


def test_streams_are_measured():
    found = measure(streams=50, seconds=2.0, rounds=5)
    print(found)
    assert found.whole == 50
