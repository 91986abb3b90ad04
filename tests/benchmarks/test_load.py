"""How much of a quota a backlog uses: the short form of `benchmarks.load`.

make bench
"""

from __future__ import annotations

import pytest
from benchmarks import load

pytestmark = pytest.mark.bench


def test_use_of_the_quota(capsys):
    with capsys.disabled():
        print()
        load.main(["--short"])
