"""Exported rows say the same in every form, and a reader never sees half a file."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from llmtasks.cli import export
from llmtasks.client import JobResult
from llmtasks.errors import StoreUnavailable, UsageError
from llmtasks.jobs import JobState
from llmtasks.messages import Usage


def row(number=0, **values):
    defaults = {
        "job_id": f"job-{number}",
        "document_id": f"doc-{number}",
        "task_type": "summarize",
        "state": JobState.COMPLETED,
        "output": "a text",
        "error_type": None,
        "error_message": None,
        "provider": "openai",
        "model": "gpt",
        "usage": Usage(input_tokens=10, output_tokens=2),
        "cost_usd": 0.25,
        "cached": False,
        "seconds": 1.5,
    }
    return JobResult(**(defaults | values))


# No NUL: neither database holds one in a text, and outputs hold it as JSON.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
NASTY = st.sampled_from(['=1+1"', "a\r\nb\n\rc", ",;\t'\"", " ", "[bold]", "\u2028\x85", "é😀"])
ROWS = st.lists(
    st.builds(
        row,
        st.integers(0, 9),
        output=st.one_of(TEXT, NASTY, st.just({"entities": [{"text": "Zoë\n", "type": "X"}]})),
        state=st.sampled_from([JobState.COMPLETED, JobState.FAILED]),
        error_message=st.one_of(st.none(), NASTY),
        cost_usd=st.one_of(st.none(), st.floats(0, 100)),
        usage=st.builds(Usage, input_tokens=st.integers(0, 2**40), output_tokens=st.just(1)),
        cached=st.booleans(),
    ),
    max_size=8,
)


def from_jsonl(path):
    for text in path.read_text().splitlines():
        line = json.loads(text)
        error, usage, output = line.pop("error"), line.pop("usage"), line.pop("output")
        yield {
            **line,
            **usage,
            "output": output if isinstance(output, str) else json.dumps(output, ensure_ascii=False),
            "error_type": error and error["type"],
            "error_message": error and error["message"],
        }


def from_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            yield {
                **{name: text or None for name, text in line.items()},
                "output": line["output"],
                "input_tokens": int(line["input_tokens"]),
                "output_tokens": int(line["output_tokens"]),
                "cost_usd": float(line["cost_usd"]) if line["cost_usd"] else None,
                "cached": line["cached"] == "True",
            }


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_all_forms_hold_the_same_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("forms")
    rows = [r if r.error_message is None else typed(r) for r in rows]
    failed = sum(r.state == JobState.FAILED for r in rows)
    for form in export.FORMS:
        assert export.export(iter(rows), form, folder / f"rows.{form}") == failed
    lines = list(from_jsonl(folder / "rows.jsonl"))
    assert list(from_csv(folder / "rows.csv")) == lines
    assert parquet.read_table(folder / "rows.parquet").to_pylist() == lines
    assert [line["job_id"] for line in lines] == [r.job_id for r in rows]


def typed(failed):
    return row(
        failed.job_id.removeprefix("job-"),
        state=failed.state,
        output=failed.output,
        error_type="OutputInvalid",
        error_message=failed.error_message,
        cost_usd=failed.cost_usd,
    )


@pytest.mark.parametrize("form", export.FORMS)
def test_what_no_encoding_holds_is_escaped_and_does_not_end_the_export(tmp_path, form):
    out = tmp_path / f"rows.{form}"
    export.export([row(output="half \ud83d a pair"), row(1)], form, out)
    data = str(parquet.read_table(out).to_pylist()) if form == "parquet" else out.read_text()
    assert "ud83d" in data
    assert "job-1" in data


@pytest.mark.parametrize("form", export.FORMS)
def test_an_export_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, form):
    out = tmp_path / "rows"
    out.write_text("before")

    def rows():
        yield row(0)
        assert out.read_text() == "before"
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        export.export(rows(), form, out)
    assert out.read_text() == "before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_link_keeps_pointing_to_its_file_and_a_device_stays_one(tmp_path):
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "real.jsonl")
    export.export([row()], "jsonl", tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert (tmp_path / "real.jsonl").read_text().count("\n") == 1
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        export.export([row()], "csv", pipe)
        assert b"job-0" in reader.stdout.read()
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_file_is_readable_for_those_the_user_lets_read(tmp_path):
    before = os.umask(0o022)
    try:
        export.export([row()], "csv", tmp_path / "rows.csv")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "rows.csv").stat().st_mode) == 0o644


def test_a_file_that_is_replaced_keeps_its_mode(tmp_path):
    out = tmp_path / "rows.csv"
    for mode in (0o600, 0o664):
        out.touch()
        out.chmod(mode)
        export.export([row()], "csv", out)
        assert stat.S_IMODE(out.stat().st_mode) == mode


def test_parquet_holds_rows_back_only_for_a_group(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "GROUP_ROWS", 100)
    monkeypatch.setattr(export, "GROUP_CHARS", 1_000)
    most = 0
    alive = 0

    class Counted(str):
        __slots__ = ()

        def __new__(cls, text):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    small = (row(n, output=Counted("x")) for n in range(1_000))
    export.export(small, "parquet", tmp_path / "small.parquet")
    assert most <= 210
    assert parquet.ParquetFile(tmp_path / "small.parquet").num_row_groups == 10
    export.export(
        (row(n, output="x" * 500) for n in range(10)), "parquet", tmp_path / "large.parquet"
    )
    assert parquet.ParquetFile(tmp_path / "large.parquet").num_row_groups == 5


def test_the_form_is_told_by_the_suffix(tmp_path):
    for name, form in (("a.CSV", "csv"), ("a.ndjson", "jsonl"), ("a.pq", "parquet")):
        assert export.form_of(tmp_path / name) == form
    assert export.form_of(None) == "jsonl"
    assert export.form_of(tmp_path / "a.csv", "jsonl") == "jsonl"
    for wrong in (tmp_path / "a.txt", tmp_path, tmp_path / "missing" / "a.csv"):
        with pytest.raises(UsageError, match="--out"):
            export.form_of(wrong)


WITHOUT_PYARROW = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
from pathlib import Path
from llmtasks.cli import export
try:
    export.form_of(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_missing_pyarrow_is_one_line_that_names_the_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYARROW, tmp_path / "a.parquet"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ConfigurationError parquet needs pyarrow; install llmtasks[parquet]\n"


def test_standard_output_takes_every_form(monkeypatch):
    for form in export.FORMS:
        data = io.BytesIO()
        text = io.TextIOWrapper(data, encoding="utf-8", write_through=True)
        monkeypatch.setattr(sys, "stdout", text)
        export.export([row(output="ü")], form, None)
        assert b"job-0" in data.getvalue()
        assert not data.closed


def test_a_terminal_of_another_encoding_gets_escapes_not_an_error(monkeypatch):
    data = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(data, encoding="ascii"))
    export.export([row(output="ü")], "jsonl", None)
    assert json.loads(data.getvalue())["output"] == "ü"
