"""What the size of a batch costs: the short form of `benchmarks.scale`.

make bench
"""

from __future__ import annotations

import pytest
from benchmarks import scale

pytestmark = pytest.mark.bench

DOCUMENTS = 2_000


def test_a_batch_of_many_short_documents(capsys):
    with capsys.disabled():
        print()
        found = scale.main(["--documents", str(DOCUMENTS)])
    assert (found.status["completed"], found.status["total"]) == (DOCUMENTS, DOCUMENTS)
    assert found.cancelled.jobs == DOCUMENTS
