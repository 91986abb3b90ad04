"""What a file is: by its suffix, or by its first bytes where the suffix does not say."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

Format = Literal["text", "html", "pdf", "docx", "epub"]

#: What folders are searched for.
SUFFIXES: Mapping[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".epub": "epub",
}

#: Bytes from the start that a signature may stand in.
HEAD_BYTES = 1024

_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!doctype\s+html|<html[\s>])",
    re.IGNORECASE | re.DOTALL,
)

_SIGNATURES = (
    (b"%PDF-", "a PDF"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Office file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"(\xb5/\xfd", "a Zstandard archive"),
    (b"\x7fELF", "a program"),
    (b"MZ\x90", "a program"),
    (b"SQLite format 3\x00", "a SQLite database"),
    (b"RIFF", "sound, video or a WebP image"),
    (b"OggS", "sound or video"),
    (b"ID3", "sound"),
)


def by_suffix(name: str) -> Format | None:
    """The format that a file's name promises; None for a suffix we do not know."""
    return SUFFIXES.get(os.path.splitext(name)[1].lower())  # noqa: PTH122  # hot: 3x faster than Path


def by_content(data: bytes) -> Format:
    """The format of bytes without a telling name: text where no other one is recognized."""
    if data.startswith(b"%PDF-"):
        return "pdf"
    if data.startswith(b"PK\x03\x04"):
        # The names of an archive's files stand in it uncompressed.
        if b"word/document" in data:
            return "docx"
        if b"META-INF/container.xml" in data:
            return "epub"
    return "html" if _HTML.match(data[:HEAD_BYTES]) else "text"


def looks_like(data: bytes) -> str | None:
    """A name for bytes that are no text, as in "a PNG image"; None where nothing is recognized."""
    if data.startswith(b"PK\x03\x04"):
        found = by_content(data)
        return {"docx": "a Word document", "epub": "an EPUB"}.get(found, "a zip archive")
    for signature, name in _SIGNATURES:
        if data.startswith(signature):
            return name
    return None
