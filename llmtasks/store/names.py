"""What text columns can hold: no NUL, no lone surrogates, and keys are bounded."""

from __future__ import annotations

import re

#: Longest job or batch id, in characters. Celery's own ids have 36.
MAX_ID = 255
#: Longest document id, in characters: long paths fit, and PostgreSQL's 2,704 bytes of index row do.
MAX_DOCUMENT_ID = 512
#: Longest tenant, in characters.
MAX_TENANT = 128
#: Longest task type, provider or worker name, in characters.
MAX_NAME = 64
#: Longest hash, in characters.
MAX_HASH = 128
#: Longest stored error message, in characters. Messages hold no document text, so longer is noise.
MAX_MESSAGE = 4_000

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def is_storable(text: str) -> bool:
    """Whether both databases give this text back as it is."""
    return _UNSTORABLE.search(text) is None


def is_key(text: str, longest: int) -> bool:
    """Whether the text may be (a part of) a key: not empty, not longer than `longest`, storable."""
    return 0 < len(text) <= longest and is_storable(text)


def clean(text: str, longest: int = MAX_MESSAGE) -> str:
    """A message as it can be stored: what no database holds becomes U+FFFD, the end is cut."""
    return _UNSTORABLE.sub("\ufffd", text[:longest])
