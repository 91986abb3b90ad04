"""docs/faults.md names a test for each fault, and these tests exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
NAMED = [re.search(r"`(tests/\S+\.py)::(\w+)`", row) for row in ROWS]


def names_in(file: str) -> set[str]:
    found = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    return {one.name for one in found if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("file", sorted({named[1] for named in NAMED if named}))
def test_the_tests_that_prove_it_exist(file):
    assert (ROOT / file).is_file(), "docs/faults.md names a file that is not there"
    missing = {named[2] for named in NAMED if named and named[1] == file} - names_in(file)
    assert missing == set(), "docs/faults.md names tests that are not there"


def test_every_fault_names_its_test():
    faults = [row for row in ROWS if not row.startswith(("| Fault |", "| --- |"))]
    assert len(faults) == len([named for named in NAMED if named])
    assert all(len(row.strip("|").split("|")) == 3 for row in faults)
