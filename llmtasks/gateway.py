"""One model call, in plain steps: look up / follow / admit -> call -> settle.

Every wait of a call happens here or not at all: most of them (behind others, for the answer to the same
question of somebody else, a block of a few seconds, a backoff) in place, because the slot is the back
pressure; longer blocks leave as `NotNow`, and the executor parks the job. The SDKs do not retry;
`retry.decide` is the one owner.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import random
import time
import uuid
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from llmtasks import logs, metrics
from llmtasks.admission import (
    CONFIRM_ABOVE_S,
    HANGS_S,
    Abandoned,
    Bell,
    Claim,
    Decider,
    Decision,
    Disabled,
    Failed,
    Follow,
    GivenUp,
    Go,
    Hit,
    Outcome,
    RateLimited,
    Rejected,
    Succeeded,
    Wait,
)
from llmtasks.errors import (
    AdmissionUnavailable,
    AuthenticationFailed,
    LLMTasksError,
    NotNow,
    OutputRefused,
    OutputTruncated,
    ProviderError,
    QuotaExhausted,
    RateLimitError,
    TransientProviderError,
)
from llmtasks.messages import Completion, FinishReason, Request, Usage
from llmtasks.providers.base import OnText, Provider
from llmtasks.retry import Fail, Postpone, Retry, decide, describe, rate_limit_delay
from llmtasks.settings import Retry as Policy

_log = logs.get("gateway")

#: The outcome of a call whose answer was whole and accepted.
OK = "ok"
#: The outcome of a call that its job gave up before there was an answer.
GIVEN_UP = "cancelled"

#: A grant that could not be used within so many seconds of its slot is given back and asked for anew.
LATE_S = 1.0

#: A grant is confirmed so many seconds before its time, so that the call is not late by the round trip:
#: quota that is not used in time is lost.
CONFIRM_AHEAD_S = 0.05


class Listener(Protocol):
    """Who hears an answer while it is written. Called on the loop: none of it may block."""

    def called(self) -> None:
        """A call goes out: from now on it is the provider that is waited for."""

    def text(self, piece: str) -> None:
        """The next piece of the answer; an answer that is already there is one piece."""

    def again(self, why: LLMTasksError) -> None:
        """What was heard so far is void, because the call broke: raise `why` unless it may be asked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request with what its admission needs.

    `key` names exactly this question; only a `shared` one is looked up and kept in the fleet's cache, and
    asked by one at a time in the fleet; `fresh` asks again although the answer is known. `tenant`,
    `priority` and `task` are its job's. `exact`: its tokens are counted, not estimated. `accept` makes the
    output of an answer's text, or raises an `OutputError`: only an accepted answer counts and is kept. It
    runs on the job's own thread. With a `listener` the answer is streamed.
    """

    request: Request
    key: str
    shared: bool
    providers: tuple[str, ...]
    input_tokens: int
    exact: bool
    tenant: str
    priority: int
    task: str
    fresh: bool = False
    accept: Callable[[str], Any] = str
    listener: Listener | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that was, or may have been, paid for. `usage` None: the outcome is unknown."""

    call_id: str
    key: str
    provider: str
    model: str
    outcome: str
    usage: Usage | None
    latency_s: float
    request_id: str | None = None
    answer: str | None = None


@dataclass(slots=True, kw_only=True)
class Journal:
    """What one job's questions did, and its way back to its own thread.

    `job` is its id, for the log. `attempts` spent so far, the current one included; `calls` to be recorded.
    `on_thread` runs a function on the job's thread: accepting an answer may take a while, and the loop
    belongs to everybody.
    """

    attempts: int
    on_thread: Callable[[Callable[[], Any]], concurrent.futures.Future[Any]]
    on_wait: Callable[[str, float], None]
    job: str = ""
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole, accepted answer and the output in it; `cached` when nobody was paid for it."""

    completion: Completion
    output: Any
    cached: bool


@dataclass(frozen=True, slots=True)
class _Failure:
    """The call gave no answer; whether to ask again is `retry.decide`'s business.

    `heard`: a listener had heard the beginning of one.
    """

    provider: str
    error: LLMTasksError
    heard: bool = False


@dataclass(frozen=True, slots=True)
class _Returned:
    """A grant came that could not be used, and was given back; ask anew at once."""


class Gateway:
    """Asks questions on behalf of the jobs of one process. Lives on the loop.

    Args:
        admission: The fleet's decisions, or those of a process that may go on alone.
        providers: The clients by provider name.
        policy: `[retry]` of the settings.
        park_after_s: A longer block than this leaves as `NotNow`.
        max_calls: Model calls in flight at once, in this process.
    """

    def __init__(
        self,
        admission: Decider,
        providers: Mapping[str, Provider],
        *,
        policy: Policy,
        park_after_s: float,
        max_calls: int,
    ) -> None:
        self._admission = admission
        self._providers = providers
        self._policy = policy
        self._park_after_s = park_after_s
        self._calls = asyncio.Semaphore(max_calls)
        self._stopping = asyncio.Event()
        self._telling: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Let calls in flight finish and send every waiting question away with `NotNow`."""
        self._stopping.set()
        self._admission.wakes.ring_all()

    async def aclose(self) -> None:
        """Close the providers' connections."""
        for provider in self._providers.values():
            await provider.aclose()

    async def ask(self, question: Question, journal: Journal) -> Answer:
        """Ask until there is an answer, an error that no retry mends, or a wait too long to sit out.

        Raises:
            NotNow: A block longer than `park_after_s`, or this process is stopping.
            LLMTasksError: What `retry.decide` called final.
        """
        wakes = self._admission.wakes
        waiter = wakes.new_waiter()
        follows = (question.key,) if question.shared and not question.fresh else ()
        failed = False
        with wakes.bell(waiter, *follows) as bell:
            try:
                return await self._ask(question, journal, waiter, bell)
            except NotNow:
                raise
            except Exception:
                failed = True
                raise
            finally:
                await self._leave(waiter, failed=failed)

    async def _ask(self, question: Question, journal: Journal, waiter: str, bell: Bell) -> Answer:
        tried: tuple[str, ...] = ()
        last: LLMTasksError | None = None
        returned = followed = False
        while True:
            bell.clear()
            claim = _claim(question, waiter, tried, returned=returned)
            async with self._calls:
                outcome = await self._once(question, journal, claim)
            match outcome:
                case Answer():
                    if question.shared and not question.fresh:
                        _measure_answer(outcome, followed=followed)
                    return outcome
                case Wait():
                    await self._hold(outcome, journal, last, bell)
                    last = None  # a later wait has another reason
                case Follow(delay):
                    followed = True
                    await self._await_ring(bell, delay)
                    last = None
                case _Returned():
                    await self._await_ring(bell, 0.0)
                    returned = True
                case _Failure(provider, failure, heard):
                    if heard and question.listener is not None:
                        question.listener.again(failure)
                    tried, last = (*tried, provider), failure
                    returned = isinstance(failure, RateLimitError)
                    await self._after(failure, journal)

    async def _once(
        self, question: Question, journal: Journal, claim: Claim
    ) -> Answer | Wait | Follow | _Returned | _Failure:
        """Admit, and call when granted. One turn of the loop, never more than one call."""
        try:
            decision = await self._admit(claim)
        except AdmissionUnavailable as error:
            return _Failure("", error)
        match decision:
            case Hit(completion):
                output = await _accepted(completion, question, journal)
                if question.listener is not None:
                    question.listener.text(completion.text)
                return Answer(completion, output, cached=True)
            case Wait() | Follow():
                return decision
            case Go():
                return await self._granted(decision, question, journal)

    async def _admit(self, claim: Claim) -> Decision:
        """Admit; a decision that arrives while the question is being given up binds nobody."""
        admitting = asyncio.ensure_future(self._admission.admit(claim))
        try:
            return await asyncio.shield(admitting)
        except asyncio.CancelledError:
            with contextlib.suppress(LLMTasksError):
                await self._tell(self._return(admitting, claim.waiter))
            raise

    async def _return(self, admitting: asyncio.Future[Decision], waiter: str) -> None:
        """Give a grant back, and leave: a decision that came after its question had left made it lead
        or wait again.
        """
        try:
            decision = await admitting
            if isinstance(decision, Go):
                await self._give_back(decision)
        finally:
            await self._leave(waiter, failed=False)

    async def _granted(
        self, go: Go, question: Question, journal: Journal
    ) -> Answer | _Returned | _Failure:
        """Wait for the grant's slot, then call."""
        try:
            usable = await self._slot(go)
        except BaseException:
            await self._give_back(go)
            raise
        if not usable:
            await self._give_back(go)
            return _Returned()
        return await self._call(go, question, journal)

    async def _slot(self, go: Go) -> bool:
        """Sleep until the grant's time; whether the call may go out now."""
        due = time.monotonic() + go.delay
        if go.delay > CONFIRM_ABOVE_S:
            await self._sleep(go.delay - CONFIRM_AHEAD_S)
            # Without an answer the grant stands: outstanding ones drain, also when Redis hangs.
            with contextlib.suppress(AdmissionUnavailable, TimeoutError):
                async with asyncio.timeout(LATE_S / 2):
                    if await self._admission.confirm(go) > 0:
                        return False
        await self._sleep(due - time.monotonic())
        return time.monotonic() - due <= LATE_S

    async def _sleep(self, delay: float) -> None:
        if await self._stopped_within(delay):
            raise NotNow("the worker is stopping")

    async def _call(self, go: Go, question: Question, journal: Journal) -> Answer | _Failure:
        """The call itself, its bookkeeping, and its settlement, whatever happens."""
        provider = self._providers[go.provider]
        call = Call(
            call_id=go.attempt_id,
            key=question.key,
            provider=go.provider,
            model=provider.model,
            outcome=GIVEN_UP,
            usage=None,
            latency_s=0.0,
        )
        settlement: Outcome = GivenUp()
        paid = True  # until the provider's own answer says otherwise
        heard = _Heard(question.listener)
        started = time.monotonic()
        if question.listener is not None:
            question.listener.called()
        try:
            with metrics.active_requests.labels(provider.model).track_inprogress():
                completion = await provider.complete(question.request, heard.on_text)
            if completion.first_text_s is not None:
                first = metrics.time_to_first_token.labels(provider.model, go.provider)
                first.observe(completion.first_text_s)
            call = _answered(call, completion)
            settlement = Succeeded(usage=completion.usage, limits=completion.limits)
            output = await _accepted(completion, question, journal)
            call = replace(call, outcome=OK, answer=completion.text)
            settlement = replace(settlement, answer=completion)
        except ProviderError as error:
            call = replace(call, outcome=type(error).__name__)
            settlement, paid = self._settlement(error), error.maybe_paid
            return _Failure(go.provider, error, heard.anything)
        finally:
            if not call.latency_s:
                call = replace(call, latency_s=time.monotonic() - started)
            if paid:
                journal.calls.append(call)
            try:
                _measure(call, question)
                metrics.count_quota(go.provider, self._admission.charged(go, settlement))
                _log_call(call, journal.job)
            finally:
                await self._settle(go, settlement)
        return Answer(completion, output, cached=False)

    def _settlement(self, error: ProviderError) -> Outcome:
        """What the fleet learns from a provider's error."""
        match error:
            case RateLimitError():
                delay = rate_limit_delay(error, self._policy)
                return RateLimited(retry_after=delay, reason=_why(error), limits=error.limits)
            case QuotaExhausted() | AuthenticationFailed():
                logs.error(_log, "provider-out", provider=error.provider, why=describe(error))
                return Disabled(reason=describe(error))
            case TransientProviderError():
                return Failed(reason=_why(error), retry_after=error.retry_after or 0.0)
            case _:
                return Rejected()

    async def _after(self, error: LLMTasksError, journal: Journal) -> None:
        """Decide, and wait here if that is short; otherwise leave."""
        decision = decide(error, journal.attempts, self._policy, random.random())
        match decision:
            case Fail(final):
                raise final from error
            case Postpone(delay):
                metrics.retries.labels(_why(error)).inc()
                journal.on_wait(describe(error), delay)
                if isinstance(error, AdmissionUnavailable):
                    await self._sleep(delay)
                # Otherwise admission knows the block, and who else can serve: ask it, do not sleep.
            case Retry(delay):
                metrics.retries.labels(_why(error)).inc()
                journal.attempts += 1
                if delay > self._park_after_s:
                    raise NotNow(_reason(error), delay=delay) from error
                journal.on_wait(describe(error), delay)
                await self._sleep(delay)

    async def _hold(
        self, wait: Wait, journal: Journal, last: LLMTasksError | None, bell: Bell
    ) -> None:
        """Sit out a wait: behind others as long as it takes, a block only when it is short."""
        if wait.blocked:
            if wait.delay > self._park_after_s:
                raise NotNow(wait.reason, delay=wait.delay) from last
            journal.on_wait(wait.reason if last is None else describe(last), wait.delay)
        await self._await_ring(bell, wait.delay)

    async def _await_ring(self, bell: Bell, delay: float) -> None:
        """Wait to be woken, `delay` seconds at the longest."""
        if not self._stopping.is_set():
            await bell.rings_within(delay)
        if self._stopping.is_set():
            raise NotNow("the worker is stopping")

    async def _stopped_within(self, delay: float) -> bool:
        if self._stopping.is_set():
            return True
        if delay <= 0:
            return False
        try:
            await asyncio.wait_for(self._stopping.wait(), delay)
        except TimeoutError:
            return False
        return True

    async def _leave(self, waiter: str, *, failed: bool) -> None:
        """Let others go on at once, also while being cancelled. Without Redis their own timers do."""
        with contextlib.suppress(AdmissionUnavailable):
            await self._tell(self._admission.leave(waiter, failed=failed))

    async def _give_back(self, go: Go) -> None:
        await self._settle(go, Abandoned())

    async def _settle(self, go: Go, outcome: Outcome) -> None:
        """Settle, also while being cancelled. Without Redis the reservation stands as consumed and the
        concurrency slot runs out by itself: a paid answer is not thrown away for that.
        """
        try:
            await self._tell(self._admission.settle(go, outcome))
        except AdmissionUnavailable as error:
            logs.warning(_log, "unsettled", provider=go.provider, why=describe(error))

    async def _tell(self, news: Coroutine[Any, Any, None]) -> None:
        """Tell the fleet, to the end, whatever becomes of who tells it; but nobody waits for long.

        A fault of ours is only logged: it must not take the place of an answer that is paid, nor of what
        ended the question.

        Raises:
            AdmissionUnavailable: Redis is away, or hangs: it is still told when it answers soon.
        """
        telling = asyncio.ensure_future(news)
        self._telling.add(telling)
        telling.add_done_callback(self._told)
        try:
            async with asyncio.timeout(HANGS_S):
                await asyncio.shield(telling)
        except TimeoutError:
            raise AdmissionUnavailable("the fleet's Redis hangs") from None
        except LLMTasksError:
            raise
        except Exception as error:  # noqa: BLE001  # an error of a script, or a defect
            logs.error(_log, "not-told", why=type(error).__name__, at=logs.place(error))

    def _told(self, telling: asyncio.Task[None]) -> None:
        self._telling.discard(telling)
        if not telling.cancelled():
            telling.exception()  # seen: nobody waits for it any more once it took too long


class _Heard:
    """Whether a listener has heard anything of a call."""

    def __init__(self, listener: Listener | None) -> None:
        self._listener = listener
        self.anything = False

    @property
    def on_text(self) -> OnText | None:
        """What a provider is to call, where there is somebody to hear it."""
        return None if self._listener is None else self._hear

    def _hear(self, piece: str) -> None:
        assert self._listener is not None
        self.anything = True
        self._listener.text(piece)


def _claim(question: Question, waiter: str, tried: tuple[str, ...], *, returned: bool) -> Claim:
    return Claim(
        attempt_id=uuid.uuid4().hex,
        waiter=waiter,
        key=question.key if question.shared else None,
        fresh=question.fresh,
        tenant=question.tenant,
        priority=question.priority,
        task=question.task,
        returned=returned,
        exact=question.exact,
        input_tokens=question.input_tokens,
        output_tokens=question.request.max_output_tokens,
        providers=question.providers,
        tried=tried,
    )


def _answered(call: Call, completion: Completion) -> Call:
    """The call's row once there is an answer, which is not accepted yet."""
    outcome = {FinishReason.LENGTH: "truncated", FinishReason.REFUSAL: "refused"}
    return replace(
        call,
        model=completion.model,
        outcome=outcome.get(completion.finish_reason, "invalid"),
        usage=completion.usage,
        latency_s=completion.latency_s,
        request_id=completion.request_id,
    )


async def _accepted(completion: Completion, question: Question, journal: Journal) -> Any:
    """The output in an answer.

    Raises:
        OutputTruncated, OutputRefused: the answer is not whole.
        OutputError: it is, and the task type does not accept it.
    """
    match completion.finish_reason:
        case FinishReason.LENGTH:
            limit = question.request.max_output_tokens
            raise OutputTruncated(f"{completion.provider} cut the answer at {limit} tokens")
        case FinishReason.REFUSAL:
            raise OutputRefused(f"{completion.provider} declined to answer")
        case FinishReason.STOP:
            accept = functools.partial(question.accept, completion.text)
            accepting = asyncio.wrap_future(journal.on_thread(accept))
            try:
                return await asyncio.shield(accepting)
            except asyncio.CancelledError:
                # It is paid and here: a job that is given up now still ends with it.
                return await accepting


def _why(error: LLMTasksError) -> str:
    """The kind of error alone, so that equal reasons can be counted: by the fleet, by a metric."""
    return type(error).__name__


def _reason(error: LLMTasksError) -> str:
    """Why a row waits, without what differs from row to row: equal reasons are counted."""
    provider = error.provider if isinstance(error, ProviderError) else ""
    return f"{provider}: {type(error).__name__}" if provider else type(error).__name__


def _log_call(call: Call, job: str) -> None:
    """The line of a call: the way from a job to what its provider calls it."""
    usage = call.usage
    logs.debug(
        _log,
        "call-ended",
        job=job,
        call=call.call_id,
        provider=call.provider,
        model=call.model,
        outcome=call.outcome,
        request=call.request_id,
        input_tokens=None if usage is None else usage.input_tokens,
        output_tokens=None if usage is None else usage.output_tokens,
        seconds=call.latency_s,
    )


def _measure_answer(answer: Answer, *, followed: bool) -> None:
    """Count the answer of a shared question: who was asked for it, or waited for by whom."""
    metrics.cache_hits.labels("hit" if answer.cached else "miss").inc()
    if followed or not answer.cached:
        metrics.single_flight.labels("followed" if answer.cached else "led").inc()


def _measure(call: Call, question: Question) -> None:
    metrics.request_duration.labels(call.model, call.provider).observe(call.latency_s)
    metrics.calls.labels(call.provider, call.model, call.outcome).inc()
    if call.usage is not None:
        metrics.tokens.labels(call.model, "prompt").inc(call.usage.input_tokens)
        metrics.tokens.labels(call.model, "completion").inc(call.usage.output_tokens)
        if call.usage.input_tokens:
            ratio = question.input_tokens / call.usage.input_tokens
            metrics.input_token_estimate.labels(call.provider, call.model).observe(ratio)
