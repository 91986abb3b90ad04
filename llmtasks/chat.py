"""A conversation with a model, token by token, through the same gate as every job.

Nothing of it is stored: it counts against the fleet's limits, shows in the metrics, and is gone. Before the
first piece a call that breaks is asked again, elsewhere if somebody else can; after it nobody can take back
what was read, and the stream ends with the error.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from llmtasks import logs, metrics, planning
from llmtasks.errors import InvalidOption, LLMTasksError, NotNow, OutputRefused, OutputTruncated
from llmtasks.gateway import Call, Gateway, Journal, Question
from llmtasks.messages import FinishReason, Request, Usage
from llmtasks.providers.prices import cost_usd
from llmtasks.settings import Provider, Settings

_log = logs.get("chat")

#: Seconds that chats which are given up have to be settled.
_SETTLE_S = 5.0

#: The task by whose name the fleet learns how long answers are.
TASK = "chat"


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """The answer has ended, as `finish_reason` says. `usage` and `cost_usd` (US dollars) None: unknown."""

    finish_reason: FinishReason
    provider: str
    model: str
    usage: Usage | None
    cost_usd: float | None
    request_id: str | None


class Chat:
    """Asks for one process. Lives on the gateway's loop."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        self._gateway = gateway
        self._settings = settings
        self._asking: set[asyncio.Future[Any]] = set()

    async def aclose(self) -> None:
        """Give up what is under way, and wait until it is settled."""
        for asking in self._asking:
            asking.cancel()
        if self._asking:
            await asyncio.wait(self._asking, timeout=_SETTLE_S)

    def providers(self, name: str | None) -> tuple[Provider, ...]:
        """Those that may answer: all, or those of this name or model.

        Raises:
            InvalidOption: there is none, naming those that are.
        """
        known = self._settings.providers
        if name is None:
            return known
        found = tuple(one for one in known if name in (one.name, one.model))
        if not found:
            names = ", ".join(dict.fromkeys(part for p in known for part in (p.name, p.model)))
            raise InvalidOption(f"no provider and no model is called {name!r}; known: {names}")
        return found

    async def stream(
        self,
        request: Request,
        providers: tuple[Provider, ...],
        *,
        tenant: str,
        priority: int,
    ) -> AsyncGenerator[Piece | Whole, None]:
        """The pieces of the answer as they come, and at last how it ended.

        It waits `[api] chat_wait_s` at the longest for its turn; then as long as the provider takes. Closing
        the generator gives up the call: its connection is closed, and it is settled.

        Raises:
            NotNow: nobody can be asked within that time.
            LLMTasksError: the call failed for good, or broke after its first piece.
        """
        heard = _Pieces(self._settings.api.chat_wait_s)
        chat_id = f"chat-{uuid.uuid4().hex}"
        journal = Journal(attempts=1, on_thread=_here, on_wait=heard.waits, job=chat_id)
        # On a thread: a long conversation takes a while to be counted, and the loop belongs to everybody.
        tokens = await asyncio.to_thread(planning.input_tokens, providers, request)
        question = self._question(request, providers, heard, tenant, priority, max(tokens.values()))
        asking = asyncio.ensure_future(self._gateway.ask(question, journal))
        heard.patience(asking)
        self._asking.add(asking)
        asking.add_done_callback(heard.end)
        asking.add_done_callback(functools.partial(self._ended, journal))
        try:
            while (piece := await heard.queue.get()) is not None:
                yield Piece(piece)
            heard.check()
            reason = await _end_of(asking)
            yield self._whole(reason, journal.calls[-1])
        finally:
            asking.cancel()  # it closes its connection and settles by itself

    def _ended(self, journal: Journal, asking: asyncio.Future[Any]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # seen, also where nobody waited for it
        for call in journal.calls:
            counted = call.usage is not None
            metrics.count_cost(call.provider, call.model, self._cost(call), is_counted=counted)
            _tell(journal.job, call)

    def _question(
        self,
        request: Request,
        providers: tuple[Provider, ...],
        heard: _Pieces,
        tenant: str,
        priority: int,
        input_tokens: int,
    ) -> Question:
        return Question(
            request=request,
            key=uuid.uuid4().hex,
            shared=False,
            providers=tuple(one.name for one in providers),
            input_tokens=input_tokens,
            exact=planning.is_exact(providers),
            tenant=tenant,
            priority=priority,
            task=TASK,
            listener=heard,
        )

    def _whole(self, reason: FinishReason, call: Call) -> Whole:
        return Whole(
            finish_reason=reason,
            provider=call.provider,
            model=call.model,
            usage=call.usage,
            cost_usd=self._cost(call),
            request_id=call.request_id,
        )

    def _cost(self, call: Call) -> float | None:
        """US dollars; None where tokens or price are unknown."""
        if call.usage is None:
            return None
        provider = next(one for one in self._settings.providers if one.name == call.provider)
        return cost_usd(provider.kind, provider.base_url, call.model, call.usage)


class _Pieces:
    """A `Listener` whose reader takes the pieces one by one; None after the last.

    It has patience for so long while nobody is called, and again after each call.
    """

    def __init__(self, wait_s: float) -> None:
        self.queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._wait_s = wait_s
        self._asking: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._why = "others come first"
        self._gave_up = False

    def patience(self, asking: asyncio.Future[Any]) -> None:
        """Give this up in time."""
        self._asking = asking
        self._wait()

    def waits(self, why: str, _delay: float) -> None:
        """It waits, and why."""
        self._why = why
        self._wait()

    def check(self) -> None:
        """See whether it was given up.

        Raises:
            NotNow: its time was over before anybody could be called.
        """
        if self._gave_up:
            raise NotNow(f"nobody could be asked within {self._wait_s:g} s: {self._why}", delay=1.0)

    def called(self) -> None:
        self._stop()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait_s, self._give_up)

    def _give_up(self) -> None:
        if self._asking is not None and not self._asking.done():
            self._gave_up = True
            self._asking.cancel()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def text(self, piece: str) -> None:
        self.queue.put_nowait(piece)

    def again(self, why: LLMTasksError) -> None:
        raise why

    def end(self, _asking: object) -> None:
        self._stop()
        self.queue.put_nowait(None)


async def _end_of(asking: asyncio.Future[Any]) -> FinishReason:
    """How the answer ended. One that was cut or declined is an end, and no error: it has been read."""
    try:
        await asking
    except OutputTruncated:
        return FinishReason.LENGTH
    except OutputRefused:
        return FinishReason.REFUSAL
    return FinishReason.STOP


def _here(function: Callable[[], Any]) -> concurrent.futures.Future[Any]:
    """Accepting any text takes no thread."""
    done: concurrent.futures.Future[Any] = concurrent.futures.Future()
    done.set_result(function())
    return done


def _tell(chat_id: str, call: Call) -> None:
    usage = call.usage or Usage()
    logs.info(
        _log,
        "chat-call",
        chat=chat_id,
        provider=call.provider,
        model=call.model,
        outcome=call.outcome,
        request=call.request_id or "",
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        seconds=call.latency_s,
    )
