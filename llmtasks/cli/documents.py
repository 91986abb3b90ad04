"""`llmtasks documents add PATH...`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from llmtasks import client
from llmtasks.cli import files
from llmtasks.cli.output import json_option, json_text, tenant_option, visible


@click.group()
def documents() -> None:
    """Store documents."""


@documents.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--id", "document_id", help="The document's id, for a single file.")
@tenant_option
@json_option
def add(paths: tuple[str, ...], document_id: str | None, tenant: str, *, as_json: bool) -> int:
    """Store the texts of files and folders, of patterns like 'docs/**/*.md', and of - (standard input).

    Folders are searched for .txt, .md, .html, .htm, .pdf, .docx and .epub. A file keeps its path as its
    id, a file of a folder its path inside that folder. Adding the same text again changes nothing.
    """
    counts: Counter[str] = Counter()
    lines = _counted(_add(files.read(paths, document_id, tenant)), counts)
    if as_json:
        _print_list(lines)
    else:
        for line in lines:
            print(_line(line))
    if counts.total() > 1 and not as_json:
        said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        print(said, file=sys.stderr)
    return 1 if counts["error"] else 0


def _add(
    chunks: Iterable[list[client.FileDocument | client.FileError]],
) -> Iterator[dict[str, Any]]:
    """Store; a file that cannot be stored is a line, not the end."""
    for chunk in chunks:
        good = [one for one in chunk if isinstance(one, client.FileDocument)]
        statuses = iter(client.add_documents(good))
        for one in chunk:
            failed = isinstance(one, client.FileError)
            yield {
                "path": one.path,
                "document_id": one.document_id,
                "status": "error" if failed else next(statuses),
                "error": one.message if isinstance(one, client.FileError) else None,
                "format": None if isinstance(one, client.FileError) else one.format,
                "encoding": None if isinstance(one, client.FileError) else one.encoding,
            }


def _counted(lines: Iterable[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        counts[line["status"]] += 1
        yield line


def _print_list(lines: Iterable[Mapping[str, Any]]) -> None:
    """A JSON list on one line, each item as soon as it is known."""
    encoding = sys.stdout.encoding or "utf-8"
    before = "["
    for line in lines:
        print(before, json_text(line, encoding), sep="", end="")
        before = ", "
    print("[]" if before == "[" else "]")


def _line(line: Mapping[str, Any]) -> str:
    """One line for people; an encoding that had to be guessed is theirs to check."""
    encoding = line["encoding"]
    guessed = f" (read as {encoding})" if encoding and not encoding.startswith("utf-") else ""
    return f"{line['status']:<8}{visible(line['error'] or line['document_id'])}{guessed}"
