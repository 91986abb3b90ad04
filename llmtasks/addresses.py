"""Addresses: as people may see them, and as Celery and redis-py write those of a Unix socket."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_CLIENT, _CELERY = "unix://", "redis+socket://"


def public(url: str) -> str:
    """A URL without user, password, query and fragment: any of those may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable URL"
    # Put together here: urlunsplit would take the empty host out of sqlite:///file.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def for_celery(url: str) -> str:
    """A server's address as Celery takes it, from redis-py's form. Others than of sockets are the same."""
    if not url.startswith(_CLIENT):
        return url
    return _CELERY + re.sub(r"([?&])db=", r"\1virtual_host=", url.removeprefix(_CLIENT))


def for_client(url: str) -> str:
    """The inverse: a server's address as redis-py takes it, from Celery's form."""
    if not url.startswith(_CELERY):
        return url
    return _CLIENT + re.sub(r"([?&])virtual_host=", r"\1db=", url.removeprefix(_CELERY))
