"""docs/metrics.md names the metrics there are, all of them, with their labels, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from llmtasks import metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
UNITS = {
    "seconds",
    "tokens",
    "US dollars",
    "ratio",
    "1 or 0",
    "jobs",
    "calls",
    "questions",
    "messages",
    "processes",
    "slots",
    "streams",
    "failures",
    "per minute",
    "requests, tokens",
}


def rows() -> list[list[str]]:
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `llm_")
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_stands_in_the_table_once_with_its_type_and_labels():
    told = [(row[0].strip("`"), row[1], tuple(re.findall(r"\w+", row[2]))) for row in rows()]
    there = [(one.name, one.kind, one.labels) for one in metrics.catalogue()]
    assert sorted(told) == sorted(there)


def test_every_row_has_a_unit_and_says_what_it_means():
    for row in rows():
        assert len(row) == 5, row
        assert row[3] in UNITS, row
        assert row[4].endswith("."), row


def test_names_follow_the_practice_of_prometheus():
    for one in metrics.catalogue():
        assert re.fullmatch(r"llm_[a-z_]+", one.name)
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert one.help.endswith("."), one.name


def test_no_label_can_have_as_many_values_as_there_are_jobs_documents_or_tenants():
    bounded = {
        "model",
        "provider",
        "type",
        "result",
        "role",
        "outcome",
        "reason",
        "task_type",
        "state",
        "dimension",
        "queue",
    }
    assert {label for one in metrics.catalogue() for label in one.labels} <= bounded
