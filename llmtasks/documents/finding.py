"""From what a user names (files, folders, globs, `-`) to files with the ids of their documents."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from llmtasks.documents.formats import Format, by_suffix

#: The name of standard input.
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Found:
    """A file to read. `document_id` None: named after its content. `format` None: as its content says."""

    path: str
    document_id: str | None
    format: Format | None


@dataclass(frozen=True, slots=True)
class FileError:
    """A file (or folder, or pattern) that gave no document; `message` is one line that names it."""

    path: str
    document_id: str | None
    message: str


def find(paths: Sequence[str], left_out: Counter[str] | None = None) -> Iterator[Found | FileError]:
    """The files that paths name, each once, in a stable order; a folder's in the order of their names.

    A file of a folder gets its path inside that folder as its id, any other its path as given. Folders are
    searched to the bottom for the suffixes of documents; hidden names and other suffixes are left out, and
    symbolic links to folders are not followed. A pattern (`*`, `?`, `[a-z]`, `**`) that the shell did not
    expand matches files of any suffix.

    Of a single path nothing is kept. Of two or more the id and the path of every file are, to find two
    files of one id: some 300 bytes a file.

    Args:
        paths: As the user wrote them.
        left_out: Counts what was left out of folders: by suffix, or as "hidden", "linked folder".
    """
    skipped: Counter[str] = Counter() if left_out is None else left_out
    if len(paths) == 1:
        yield from _named(paths[0], skipped)
        return
    taken: dict[str, str] = {}
    for path in paths:
        for found in _named(path, skipped):
            key = found.document_id
            if isinstance(found, FileError) or key is None:
                yield found
            elif key not in taken:
                taken[key] = found.path
                yield found
            elif taken[key] != found.path:
                yield FileError(
                    found.path,
                    key,
                    f"{found.path}: has the id {key!r}, and so has {taken[key]}; add one of them by a"
                    " path that tells them apart",
                )


def _named(path: str, left_out: Counter[str]) -> Iterator[Found | FileError]:
    if path == STDIN:
        yield Found(path, None, None)
    elif not path:
        yield FileError(path, None, "an empty path names no file")
    elif os.path.isdir(path):  # noqa: PTH112  # str all through: a Path a file is half the time
        yield from _folder(path, left_out)
    elif glob.has_magic(path) and not os.path.lexists(path):
        yield from _pattern(path)
    else:
        yield _file(PurePath(path).as_posix(), PurePath(path).as_posix())


def _folder(folder: str, left_out: Counter[str]) -> Iterator[Found | FileError]:
    root = os.path.join(folder, "")  # noqa: PTH118
    for entry in _walk(root, left_out):
        if isinstance(entry, FileError):
            yield entry
        elif by_suffix(entry) is None:
            suffix = PurePath(entry).suffix.lower()
            left_out[suffix if suffix.isprintable() and suffix else "without suffix"] += 1
        else:
            yield _file(root + entry, entry)


def _pattern(pattern: str) -> Iterator[Found | FileError]:
    parts = PurePath(pattern).parts
    fixed = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    root, wanted = PurePath(*parts[:fixed]), parts[fixed:]
    prefix = "" if root == PurePath() else os.path.join(root.as_posix(), "")  # noqa: PTH118
    depth = None if "**" in wanted else len(wanted)
    nothing = True
    for entry in _walk(prefix or "./", Counter(), depth):
        if isinstance(entry, FileError):
            yield entry
        elif _matches(entry.split("/"), wanted):
            nothing = False
            yield _file(prefix + entry, prefix + entry)
    if nothing:
        yield FileError(pattern, None, f"{pattern}: matches no file")


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        if len(wanted) == 1:
            return bool(parts)
        return any(_matches(parts[n:], wanted[1:]) for n in range(len(parts)))
    return (
        bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
    )


def _walk(root: str, left_out: Counter[str], depth: int | None = None) -> Iterator[str | FileError]:
    """The paths below a folder, relative to it, of all that is no folder: a folder's own before those of
    the folders in it. `root` ends with a slash; `depth` 1 is the folder alone.
    """
    folders = [""]
    while folders:
        inside = folders.pop()
        try:
            with os.scandir(root + inside) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            path = (root + inside).rstrip("/")
            yield FileError(path, None, f"{_shown(path)}: cannot be read: {error.strerror}")
            continue
        below: list[str] = []
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                below.append(f"{inside}{entry.name}/")
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112
                left_out["linked folder"] += 1
            else:
                yield inside + entry.name
        if depth is None or inside.count("/") + 1 < depth:
            folders.extend(reversed(below))


def _file(path: str, document_id: str) -> Found | FileError:
    if not _is_unicode(path):
        return FileError(path, None, f"{_shown(path)}: the file's name is not UTF-8; rename it")
    return Found(path, document_id, by_suffix(path))


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    r"""A path for a message; one that is not UTF-8 as its bytes, as in `caf\xe9.txt`."""
    return path if _is_unicode(path) else ascii(os.fsencode(path))[2:-1]
