"""Directories for this user alone: answers, with the texts in them, lie there."""

from __future__ import annotations

import contextlib
from pathlib import Path

from llmtasks.errors import ConfigurationError
from llmtasks.settings import Settings


def own(settings: Settings, *parts: str) -> Path:
    """The data directory, or one inside it; each level that is missing is made for its owner alone.

    Raises:
        ConfigurationError: it cannot be made; the message says why.
    """
    directory = settings.data_dir.joinpath(*parts)
    try:
        _make(directory)
    except OSError as error:
        raise _unusable(directory, error) from None
    return directory


def own_file(settings: Settings, name: str) -> Path:
    """A file in the data directory, empty where it was missing, and then its owner's alone.

    Raises:
        ConfigurationError: as `own`.
    """
    path = own(settings) / name
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise _unusable(path, error) from None
    return path


def for_socket(settings: Settings) -> Path:
    """The directory of the embedded server's socket, made where it is missing.

    Raises:
        ConfigurationError: it cannot be made, or is not this user's alone.
    """
    directory = settings.socket_path.parent
    if directory == settings.data_dir:
        return own(settings)
    try:
        _make(directory)
    except OSError as error:
        raise _unusable(directory, error) from None
    return settings.socket_path.parent  # asked again: somebody may have made it meanwhile


def leave_socket(settings: Settings) -> None:
    """Remove the socket's directory where it is one of its own, unless somebody uses it."""
    directory = settings.socket_path.parent
    if directory != settings.data_dir:
        with contextlib.suppress(OSError):
            directory.rmdir()


def trim(directory: Path, pattern: str, keep: int) -> None:
    """Remove the files of a name pattern except the `keep` newest ones."""
    files: list[tuple[float, Path]] = []
    for path in directory.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            files.append((path.stat().st_mtime, path))
    for _, path in sorted(files, reverse=True)[keep:]:
        path.unlink(missing_ok=True)


def _unusable(path: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(f"{path} cannot be used: {error.strerror}", key="local.data_dir")


def _make(directory: Path) -> None:
    """Like mkdir with parents, which would give the parents what the umask allows."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileNotFoundError:
        _make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)
