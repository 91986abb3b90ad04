"""docs/errors.md names the errors there are, all of them, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from llmtasks import errors

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
COLUMNS = 6


def rows() -> list[list[str]]:
    """The cells of each row that names an error."""
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_error_stands_in_the_table_once_and_nothing_else_does():
    told = [re.fullmatch(r"`(\w+)`", row[0])[1] for row in rows()]
    there = {
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.LLMTasksError)
    }
    assert there - set(told) == set(), "classes without a row in docs/errors.md"
    assert set(told) - there == set(), "rows of docs/errors.md without a class"
    assert sorted(told) == sorted(set(told)), "named twice in docs/errors.md"


def test_every_row_says_all_of_it():
    for row in rows():
        assert len(row) == COLUMNS, row
        assert all(row), row
