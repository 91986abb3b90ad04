"""What a server owns from start to stop, on its loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from llmtasks import admission, providers
from llmtasks.admission import HANGS_S, Decider, ProviderStatus
from llmtasks.api.polls import BatchPolls, JobEnds
from llmtasks.api.sse import Room
from llmtasks.chat import Chat
from llmtasks.documents import Pool, pool
from llmtasks.errors import AdmissionUnavailable
from llmtasks.gateway import Gateway
from llmtasks.progress import Reader
from llmtasks.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """One server's."""

    settings: Settings
    fleet: Decider
    chat: Chat
    reader: Reader
    batches: BatchPolls
    ends: JobEnds
    room: Room
    chats: Room
    converters: Pool

    async def standings(self) -> list[ProviderStatus]:
        """The providers as the fleet sees them.

        Raises:
            AdmissionUnavailable: Redis is away, or hangs.
        """
        try:
            async with asyncio.timeout(HANGS_S):
                return list(await self.fleet.status())
        except TimeoutError:
            raise AdmissionUnavailable("the fleet's Redis hangs") from None


@contextlib.asynccontextmanager
async def opened(settings: Settings, keys: Mapping[str, str | None]) -> AsyncIterator[Resources]:
    """Connect, and in the end close what is open; chats under way are given up and settled."""
    fleet = admission.decider_of(settings)
    gateway = Gateway(
        fleet,
        {one.name: providers.build(one, keys[one.name]) for one in settings.providers},
        policy=settings.retry,
        park_after_s=settings.dispatch.park_after_s,
        max_calls=settings.api.max_streams,
    )
    chat, reader = Chat(gateway, settings), Reader.made(settings)
    try:
        with pool() as converters:
            yield Resources(
                settings=settings,
                fleet=fleet,
                chat=chat,
                reader=reader,
                batches=BatchPolls(),
                ends=JobEnds(),
                room=Room(settings.api.max_streams),
                chats=Room(settings.api.max_streams),
                converters=converters,
            )
    finally:
        await chat.aclose()
        await reader.aclose()
        await gateway.aclose()
        await fleet.aclose()
