"""`llmtasks documents add PATH...`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click

from llmtasks import client
from llmtasks.cli.output import json_option, json_text, tenant_option, visible
from llmtasks.documents.formats import SUFFIXES
from llmtasks.errors import UsageError

#: Documents written in one transaction, at most.
CHUNK = 500
#: Characters of text that are held at once, but for the last document's.
CHUNK_CHARACTERS = 8_000_000

#: Suffixes that the remark on files left out names.
_NAMED_SUFFIXES = 5


#: A folder without documents.
NOTHING = f"nothing found; folders are searched for {', '.join(SUFFIXES)}"


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
    left_out: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    lines = _counted(
        _add(client.find_documents(paths, document_id, tenant, left_out=left_out)), counts
    )
    if as_json:
        _print_list(lines)
    else:
        for line in lines:
            print(_line(line))
    if remark := left_out_remark(left_out):
        _say(remark)
    if not counts:
        # Most likely a wrong path: a script that goes on would work on nothing.
        raise UsageError(NOTHING)
    if counts.total() > 1 and not as_json:
        _say(", ".join(f"{count:,} {status}" for status, count in counts.items()))
    return 1 if counts["error"] else 0


def left_out_remark(left_out: Mapping[str, int]) -> str:
    """One line on the files of folders that are no documents; empty when there are none."""
    counts = Counter({what: count for what, count in left_out.items() if count})
    if not counts:
        return ""
    named = [f"{count:,} {what}" for what, count in counts.most_common(_NAMED_SUFFIXES)]
    rest = counts.total() - sum(count for _, count in counts.most_common(_NAMED_SUFFIXES))
    return f"left out: {', '.join([*named, *([f'{rest:,} others'] if rest else [])])}"


def _add(found: Iterable[client.FileDocument | client.FileError]) -> Iterator[dict[str, Any]]:
    """Store in chunks; a file that cannot be stored is a line, not the end."""
    for chunk in chunks(found):
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


def chunks(
    found: Iterable[client.FileDocument | client.FileError],
) -> Iterator[list[client.FileDocument | client.FileError]]:
    """As many at a time as one transaction takes; their texts are not kept."""
    chunk: list[client.FileDocument | client.FileError] = []
    characters = 0
    for one in found:
        chunk.append(one)
        characters += len(one.text) if isinstance(one, client.FileDocument) else 0
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


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


def _say(text: str) -> None:
    print(visible(text), file=sys.stderr)
