"""Addresses as people may see them."""

from __future__ import annotations

from urllib.parse import urlsplit


def public(url: str) -> str:
    """A URL without user, password, query and fragment: any of those may be a secret."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an unreadable URL"
    # Put together here: urlunsplit would take the empty host out of sqlite:///file.
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
