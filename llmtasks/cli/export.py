"""Results as JSON lines, CSV or Parquet, to a file that appears whole, or to standard output.

All three hold the same rows and values. In CSV and Parquet an output that is a structure is JSON in
its cell, and a lone surrogate, which UTF-8 cannot hold, is written as its escape. CSV knows no null:
it is an empty cell. Its text is left as it is, also where a spreadsheet would take it for a formula
(`=...`): a changed text would be a wrong result for every other reader. Import it as text.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from llmtasks.cli.output import json_text, result_cells, result_json
from llmtasks.client import JobResult
from llmtasks.errors import ConfigurationError, UsageError
from llmtasks.jobs import JobState

#: The forms, and the suffixes by which a file asks for them.
FORMS = {"jsonl": (".jsonl", ".ndjson", ".json"), "csv": (".csv",), "parquet": (".parquet", ".pq")}

#: The columns of CSV and Parquet, in their order, with their Parquet type.
COLUMNS = {
    "job_id": "string",
    "document_id": "string",
    "task_type": "string",
    "state": "string",
    "output": "string",
    "error_type": "string",
    "error_message": "string",
    "provider": "string",
    "model": "string",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "cost_usd": "float64",
    "cached": "bool",
}

#: A row group is written when it has so many rows or characters of text; more is never in memory.
GROUP_ROWS = 10_000
GROUP_CHARS = 32_000_000


def form_of(out: Path | None, form: str | None = None) -> str:
    """The form to write: as asked, else by the file's suffix, else JSON lines.

    Says at once what would fail only after all the work.

    Raises:
        UsageError: The form cannot be guessed, or `out` cannot be written.
        ConfigurationError: Parquet needs what is not installed.
    """
    chosen = form or _by_suffix(out)
    if chosen == "parquet":
        if importlib.util.find_spec("pyarrow") is None:
            raise ConfigurationError("parquet needs pyarrow; install llmtasks[parquet]")
        if out is None and sys.stdout.isatty():
            raise UsageError("parquet is no text for a terminal; give --out FILE, or a pipe")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        what = "is a folder" if out.is_dir() else "its folder does not exist"
        raise UsageError(f"--out {out}: {what}")
    if out is not None and not os.access(out if out.exists() else out.absolute().parent, os.W_OK):
        raise UsageError(f"--out {out}: cannot be written there")
    return chosen


def export(rows: Iterable[JobResult], form: str, out: Path | None) -> int:
    """Write the rows; how many of the jobs failed.

    Args:
        rows: Read once; never held all at a time.
        form: One of FORMS, as `form_of` gives it.
        out: A file, which appears when it is whole; None: standard output.

    Raises:
        UsageError: The file cannot be written.
    """
    counted = _Counted(rows)
    write = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[form]
    if out is None:
        write(counted, _Stdout(), sys.stdout.encoding or "utf-8")
        sys.stdout.flush()
        return counted.failed
    try:
        with _appearing(out) as file:
            write(counted, file, "utf-8")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written: {error.strerror}") from None
    return counted.failed


class _Counted:
    """The rows, and how many of those that were read had failed."""

    def __init__(self, rows: Iterable[JobResult]) -> None:
        self._rows = rows
        self.failed = 0

    def __iter__(self) -> Iterator[JobResult]:
        for row in self._rows:
            self.failed += row.state == JobState.FAILED
            yield row


class _Stdout(io.RawIOBase):
    """Standard output as bytes. It counts them: a pipe does not know where it is, Parquet asks."""

    def __init__(self) -> None:
        sys.stdout.flush()
        self._file = sys.stdout.buffer
        self._written = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._written += self._file.write(data)
        return len(data)

    def tell(self) -> int:
        return self._written


def _by_suffix(out: Path | None) -> str:
    if out is None:
        return "jsonl"
    for form, suffixes in FORMS.items():
        if out.suffix.lower() in suffixes:
            return form
    raise UsageError(f"--out {out}: its suffix names no form; there are .jsonl, .csv and .parquet")


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[IO[bytes]]:
    """A file that takes its name when it is whole; what is no regular file is written to directly."""
    path = out.resolve()  # a link keeps pointing to its file
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            if path.exists():  # whoever may not read that must not read this either
                part.chmod(stat.S_IMODE(path.stat().st_mode))
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _jsonl(rows: Iterable[JobResult], file: Any, encoding: str) -> None:
    for row in rows:
        file.write(f"{json_text(result_json(row), encoding)}\n".encode(encoding))


def _csv(rows: Iterable[JobResult], file: Any, encoding: str) -> None:
    text = io.TextIOWrapper(
        file, encoding=encoding, errors="backslashreplace", newline="", write_through=True
    )
    writer = csv.DictWriter(text, fieldnames=list(COLUMNS))
    writer.writeheader()
    writer.writerows(map(result_cells, rows))
    text.detach()


def _parquet(rows: Iterable[JobResult], file: Any, _encoding: str) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([(name, pa.type_for_alias(alias)) for name, alias in COLUMNS.items()])
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pydict(group, schema), row_group_size=GROUP_ROWS)


def _groups(rows: Iterable[JobResult]) -> Iterator[dict[str, list[Any]]]:
    """The rows as columns, in pieces of bounded size."""
    group: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    count = chars = 0
    for row in rows:
        for name, value in result_cells(row).items():
            group[name].append(_encodable(value) if isinstance(value, str) else value)
        count += 1
        chars += len(group["output"][-1] or "")
        if count >= GROUP_ROWS or chars >= GROUP_CHARS:
            yield group
            group = {name: [] for name in COLUMNS}
            count = chars = 0
    if count:
        yield group


def _encodable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
