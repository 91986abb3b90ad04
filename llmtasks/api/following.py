"""Streams of events: how a batch goes on, a job's answer while it is written, a chat."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final

from starlette.concurrency import run_in_threadpool

from llmtasks import client
from llmtasks.api.resources import Resources
from llmtasks.api.sse import DONE, Events, error_event, event
from llmtasks.chat import Piece as ChatPiece
from llmtasks.chat import Whole
from llmtasks.client import JobResult
from llmtasks.errors import StoreUnavailable
from llmtasks.jobs import ENDED
from llmtasks.progress import Entry, Piece, Reset, Sight, resumed, seen
from llmtasks.progress.reader import BEGINNING
from llmtasks.progress.sight import Kind
from llmtasks.shapes import result_json, status_json

#: Seconds that the last pieces of an ended job may be behind its row.
_BEHIND_S: Final = 1.0
#: Shows that the stream has begun, before there is anything to tell.
_ATTACHED: Final = b": attached\n\n"
_RESET: Final = event({}, kind="reset")


async def batch_events(resources: Resources, batch_id: str) -> Events:
    """How a batch stands, now and whenever that changes, until it has ended."""
    number = 0
    with resources.room.place():
        async with contextlib.aclosing(resources.batches.changes(batch_id)) as changes:
            async for status in changes:
                if status is None:
                    yield error_event("UnknownJob", "the batch is gone")
                    return
                number += 1
                yield event(status_json(status), event_id=str(number))
                if status.state != "running":
                    yield DONE
                    return


async def chat_events(
    resources: Resources, answer: AsyncGenerator[ChatPiece | Whole, None]
) -> Events:
    """The tokens of an answer, and how it ended."""
    with resources.chats.place():
        async with contextlib.aclosing(answer) as parts:
            async for part in parts:
                match part:
                    case ChatPiece(text):
                        yield event({"token": text})
                    case Whole():
                        yield event(_whole(part), kind="end")
        yield DONE


def _whole(answer: Whole) -> dict[str, Any]:
    usage = answer.usage
    return {
        "finish_reason": str(answer.finish_reason),
        "provider": answer.provider,
        "model": answer.model,
        "usage": usage
        and {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens},
        "cost_usd": answer.cost_usd,
        "request_id": answer.request_id,
    }


async def job_events(resources: Resources, job_id: str, after: str | None) -> Events:
    """A job's answer while it is written, and its result.

    `after` is the id of the last event that the client has seen. What cannot be shown piece by piece, since
    it was not streamed, is gone, or a piece of it is missing, is shown as a whole once it is there.
    """
    with resources.room.place():
        yield _ATTACHED
        show = _Show(resources, job_id)
        async for chunk in show.events(after):
            yield chunk


class _Show:
    """One client's view of a job."""

    def __init__(self, resources: Resources, job_id: str) -> None:
        self._resources = resources
        self._job_id = job_id
        self._sight = Sight()

    async def events(self, after: str | None) -> AsyncIterator[bytes]:
        reader, start = self._resources.reader, BEGINNING
        if after is not None:
            last = await reader.find(self._job_id, after)
            if last is None:
                yield _RESET
            else:
                self._sight, start = resumed(last), after
        ended = await self._row_ended()
        if ended:
            for chunk in self._shown(await reader.between(self._job_id, start)):
                yield chunk
        else:
            async for chunk in self._followed(start):
                yield chunk
        for chunk in self._end(await self._row()):
            yield chunk

    async def _followed(self, start: str) -> AsyncIterator[bytes]:
        """What comes, until the row has ended and nothing more is on its way."""
        with self._resources.ends.of(self._job_id) as ended:
            async with contextlib.aclosing(
                self._resources.reader.follow(self._job_id, start)
            ) as following:
                coming = asyncio.ensure_future(anext(following))
                try:
                    while True:
                        entries = await _next(coming, ended)
                        if entries is None:
                            return
                        for chunk in self._shown(entries):
                            yield chunk
                        if self._sight.ended and await self._row_ended():
                            return
                        coming = asyncio.ensure_future(anext(following))
                finally:
                    coming.cancel()
                    await asyncio.wait([coming])

    def _shown(self, entries: Sequence[Entry]) -> list[bytes]:
        chunks = []
        for entry in entries:
            self._sight, found = seen(self._sight, entry)
            match found:
                case Piece(text):
                    chunks.append(event({"token": text}, event_id=entry.id))
                case Reset():
                    # Who resumes goes on behind what was shown: that an entry was not has no id.
                    begun = entry.id if entry.kind is Kind.BEGIN else None
                    chunks.append(event({}, kind="reset", event_id=begun))
        return chunks

    def _end(self, row: JobResult) -> list[bytes]:
        if row.error_type is not None or row.state != "completed":
            name = row.error_type or "JobCancelled"
            return [error_event(name, row.error_message or f"the job was {row.state}")]
        chunks = []
        if not self._sight.whole:
            chunks += [_RESET] if self._sight.heard else []
            chunks.append(event({"token": _text(row.output)}))
        return [*chunks, event(result_json(row), kind="result"), DONE]

    async def _row_ended(self) -> bool:
        try:
            return (await self._row()).state in ENDED
        except StoreUnavailable:
            return False

    async def _row(self) -> JobResult:
        return await run_in_threadpool(client.job, self._job_id)


async def _next(
    coming: asyncio.Future[Sequence[Entry]], ended: asyncio.Event
) -> Sequence[Entry] | None:
    """The next entries; None when the row has ended and none come any more."""
    waiting = asyncio.ensure_future(ended.wait())
    both: list[asyncio.Future[Any]] = [coming, waiting]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            await asyncio.wait([coming], timeout=_BEHIND_S)
        return coming.result() if coming.done() else None
    finally:
        waiting.cancel()


def _text(output: object) -> str:
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
