"""`llmtasks documents add PATH...`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from llmtasks import client
from llmtasks.cli.output import json_option, print_json, tenant_option
from llmtasks.errors import InvalidDocument, UsageError
from llmtasks.store.documents import NewDocument

#: What a folder is searched for; a file named directly may have any name.
SUFFIXES = frozenset({".txt", ".md"})

#: Documents written in one transaction.
CHUNK = 100


@dataclass(frozen=True, slots=True)
class Found:
    """A file, and the id its document gets."""

    path: Path
    document_id: str


@click.group()
def documents() -> None:
    """Store documents."""


@documents.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--id", "document_id", help="The document's id, for a single file.")
@tenant_option
@json_option
def add(paths: tuple[Path, ...], document_id: str | None, tenant: str, *, as_json: bool) -> int:
    """Store the texts of files and folders.

    A file keeps its path as its id, a file of a folder its path inside that folder. Adding the same
    text again changes nothing.
    """
    found = list(_find(paths))
    if document_id is not None:
        if len(found) != 1:
            raise UsageError(f"--id names one document, and {len(found)} files were found")
        found = [Found(found[0].path, document_id)]
    lines = list(_add(found, tenant))
    if as_json:
        print_json(lines)
    else:
        for line in lines:
            print(f"{line['status']:<8}{line['error'] or line['document_id']}")
        if not lines:
            print(f"nothing found; folders are searched for {', '.join(sorted(SUFFIXES))}")
    return 1 if any(line["status"] == "error" for line in lines) else 0


def _find(paths: tuple[Path, ...]) -> Iterator[Found]:
    for path in paths:
        if path.is_dir():
            for folder, folders, files in os.walk(path):
                folders.sort()
                for name in sorted(files):
                    file = Path(folder, name)
                    if file.suffix.lower() in SUFFIXES and file.is_file():
                        yield Found(file, file.relative_to(path).as_posix())
        else:
            yield Found(path, path.as_posix())


def _add(found: list[Found], tenant: str) -> Iterator[dict[str, str | None]]:
    """Store in chunks; a file that cannot be stored is a line, not the end."""
    for start in range(0, len(found), CHUNK):
        chunk = found[start : start + CHUNK]
        read = [_read(item, tenant) for item in chunk]
        good = [document for document in read if isinstance(document, NewDocument)]
        statuses = iter(client.add_documents(good))
        for item, document in zip(chunk, read, strict=True):
            failed = isinstance(document, str)
            yield {
                "path": str(item.path),
                "document_id": item.document_id,
                "status": "error" if failed else next(statuses),
                "error": document if isinstance(document, str) else None,
            }


def _read(item: Found, tenant: str) -> NewDocument | str:
    try:
        return client.read_document(item.path, item.document_id, tenant)
    except InvalidDocument as error:
        return str(error)
