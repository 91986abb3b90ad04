"""Files of the real world become texts: found by paths, read by format, converted where they are no text.

    finding.py     files, folders, globs and `-` -> Found
    formats.py     what a file is, by its suffix or its first bytes
    decoding.py    bytes -> text
    pool.py        conversions in child processes, in order, with a deadline and a bound on memory
    child.py       such a process
    converting.py  what it does: pdf, docx, epub and html -> Markdown
    reading.py     Found -> Text, by way of the above

A file that cannot be a document is one `FileError` and never an exception.
"""

from __future__ import annotations

from llmtasks.documents.finding import FileError, Found, find
from llmtasks.documents.pool import Pool, pool
from llmtasks.documents.reading import Text, read_found, read_one

__all__ = ["FileError", "Found", "Pool", "Text", "find", "pool", "read_found", "read_one"]
