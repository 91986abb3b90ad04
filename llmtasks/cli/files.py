"""Reading the files that a command names, for all commands that do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from llmtasks import client
from llmtasks.cli.output import visible
from llmtasks.client import FileDocument, FileError
from llmtasks.documents.formats import SUFFIXES
from llmtasks.errors import UsageError
from llmtasks.store.documents import CHUNK, CHUNK_CHARACTERS

#: Suffixes that the remark on files left out names.
_NAMED_SUFFIXES = 5


def read(
    paths: Sequence[str], document_id: str | None, tenant: str
) -> Iterator[list[FileDocument | FileError]]:
    """The documents in the files, as many at a time as one transaction takes: their texts are not kept.

    Says on stderr, at the end, what folders hold besides.

    Raises:
        UsageError: nothing was found. Most likely a wrong path: a script that goes on would work on nothing.
    """
    left_out: Counter[str] = Counter()
    empty = True
    for chunk in _chunks(client.find_documents(paths, document_id, tenant, left_out=left_out)):
        empty = False
        yield chunk
    if remark := left_out_remark(left_out):
        print(visible(remark), file=sys.stderr, flush=True)
    if empty:
        raise UsageError(f"nothing found; folders are searched for {', '.join(SUFFIXES)}")


def told(chunk: Iterable[FileDocument | FileError]) -> list[FileDocument]:
    """The documents; of the others it is said on stderr why they are none."""
    good = []
    for one in chunk:
        if isinstance(one, FileError):
            print(f"error  {visible(one.message)}", file=sys.stderr, flush=True)
        else:
            good.append(one)
    return good


def left_out_remark(left_out: Mapping[str, int]) -> str:
    """One line on the files of folders that are no documents; empty when there are none."""
    counts = Counter({what: count for what, count in left_out.items() if count})
    if not counts:
        return ""
    most = counts.most_common(_NAMED_SUFFIXES)
    named = [f"{count:,} {what}" for what, count in most]
    rest = counts.total() - sum(count for _, count in most)
    return f"left out: {', '.join([*named, *([f'{rest:,} others'] if rest else [])])}"


def _chunks(
    found: Iterable[FileDocument | FileError],
) -> Iterator[list[FileDocument | FileError]]:
    chunk: list[FileDocument | FileError] = []
    characters = 0
    for one in found:
        chunk.append(one)
        characters += len(one.text) if isinstance(one, FileDocument) else 0
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk
