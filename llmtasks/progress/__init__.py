"""A running job's answer while it is written: its pieces in a Redis Stream, which is capped and runs out.

What is here is for people who watch, and nothing depends on it: the truth is the job's row. A piece that
could not be written is missed by its reader, who then waits for the result (`sight.py`).

    worker:  stream = publisher.of(job_id, fence); stream.begin(); stream.text("..."); stream.end()
    server:  async for entries in reader.follow(job_id, after): ...
"""

from __future__ import annotations

from llmtasks.progress.publisher import JobStream, Publisher
from llmtasks.progress.reader import Reader
from llmtasks.progress.sight import Ended, Entry, Event, Piece, Reset, Sight, resumed, seen

__all__ = [
    "Ended",
    "Entry",
    "Event",
    "JobStream",
    "Piece",
    "Publisher",
    "Reader",
    "Reset",
    "Sight",
    "resumed",
    "seen",
]
