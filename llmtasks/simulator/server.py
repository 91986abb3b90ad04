"""The simulated provider's HTTP server.

One request, in plain steps: read the question -> does a fault strike at the door -> does the quota
grant it -> does a fault strike behind the door -> wait as long as a model would -> answer. All
decisions are made without awaiting in between, on one clock, so the quota is enforced exactly.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import random
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import web

from llmtasks.simulator import answers, quota
from llmtasks.simulator.anthropic_wire import AnthropicWire
from llmtasks.simulator.config import Config, Fault, Latency, Quota, narrowest
from llmtasks.simulator.faults import DOOR_KINDS, ERROR_KINDS, ActiveFault, FaultPlan
from llmtasks.simulator.journal import CLIENT_LEFT, NOTHING_SENT, Entry, Journal
from llmtasks.simulator.openai_wire import OpenAIWire
from llmtasks.simulator.protocol import Answer, Ask, BadRequestError, Failure, Stream, Wire

#: Names the request in the log; a marker `[[sim:NAME]]` in the prompt does the same.
TAG_HEADER: Final = "x-sim-tag"
_TAG_OPEN: Final = "[[sim:"
_TAG_CLOSE: Final = "]]"
_TAG_CHARS: Final = 128
#: Longer keys may be real ones: they are shown as their digest only.
_SHORT_KEY_CHARS: Final = 32
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024
#: Connections that may wait to be accepted; a fleet can open hundreds at once.
_BACKLOG: Final = 1024
#: Seconds that answers in flight may take when the server stops; hanging ones never end.
_SHUTDOWN_S: Final = 0.2
#: A stream has at most this many pieces of at least this many characters.
_PIECES: Final = 32
_PIECE_CHARS: Final = 16
_ABSURD: Final = "999999999"
_JSON: Final = {"Content-Type": "application/json"}
_EVENTS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
_NO_JSON: Final = b"<html><body>upstream sent something else</body></html>"

_FAILURES: Final[Mapping[str, Failure]] = {
    "429": Failure(status=429, kind="requests", message="Rate limit reached (simulated fault)."),
    "401": Failure(status=401, kind="authentication", message="Incorrect API key provided."),
    "400": Failure(status=400, kind="invalid_request", message="Invalid request (simulated)."),
    "context_window": Failure(
        status=400,
        kind="context_window",
        message="prompt is too long: this model's maximum context length is exceeded (simulated).",
    ),
    "500": Failure(status=500, kind="server", message="Internal server error (simulated)."),
    "503": Failure(status=503, kind="overloaded", message="Service unavailable (simulated)."),
    "529": Failure(status=529, kind="overloaded", message="Overloaded (simulated)."),
}
_NO_CREDIT: Final = {
    "openai": Failure(
        status=429,
        kind="insufficient_quota",
        message="You exceeded your current quota, please check your plan and billing details.",
    ),
    "anthropic": Failure(
        status=402,
        kind="insufficient_quota",
        message="Your credit balance is too low to access the API.",
    ),
}
_FILTERED: Final = Failure(
    status=400, kind="content_filter", message="Output blocked by content filtering policy"
)


def account_of(headers: Mapping[str, str]) -> str:
    """The account a request is for: its API key, or "anonymous". A long key shows as a digest."""
    key = headers.get("x-api-key") or headers.get("Authorization", "").removeprefix("Bearer ")
    key = key.strip()
    if not key:
        return "anonymous"
    if len(key) > _SHORT_KEY_CHARS:
        return "sha256:" + hashlib.sha256(key.encode()).hexdigest()[:12]
    return key


class _Visit:
    """What becomes known about one request while it is served."""

    __slots__ = (
        "account",
        "ask",
        "at",
        "fault",
        "granted",
        "key",
        "output_tokens",
        "path",
        "request",
        "request_id",
        "seq",
        "status",
        "tag",
        "whole",
        "wire",
    )

    def __init__(self, seq: int, at: float, request: web.Request, wire: Wire) -> None:
        self.seq = seq
        self.at = at
        self.request = request
        self.wire = wire
        self.request_id = f"req_sim_{seq}"
        self.path = request.path
        self.account = account_of(request.headers)
        self.tag = request.headers.get(TAG_HEADER, "")[:_TAG_CHARS]
        self.ask: Ask | None = None
        self.key = ("", "", "")
        self.status = NOTHING_SENT
        self.granted = False
        self.whole = False
        self.fault = ""
        self.output_tokens = 0

    def entry(self, now: float) -> Entry:
        ask = self.ask
        return Entry(
            seq=self.seq,
            request_id=self.request_id,
            at=self.at,
            account=self.account,
            model=ask.model if ask else "",
            path=self.path,
            tag=self.tag or (_marked_tag(ask.prompt) if ask else ""),
            status=self.status,
            prompt=ask.digest if ask else b"",
            input_tokens=ask.input_tokens if ask else 0,
            max_tokens=ask.max_tokens if ask else 0,
            output_tokens=self.output_tokens,
            granted=self.granted,
            whole=self.whole,
            stream=ask.stream if ask else False,
            fault=self.fault,
            duration_s=now - self.at,
        )


def _marked_tag(prompt: str) -> str:
    start = prompt.find(_TAG_OPEN)
    if start < 0:
        return ""
    start += len(_TAG_OPEN)
    end = prompt.find(_TAG_CLOSE, start, start + _TAG_CHARS)
    return prompt[start:end] if end >= 0 else ""


class Simulator:
    """The state of one simulated provider, and the handling of model calls."""

    def __init__(self, config: Config) -> None:
        self.config = config
        file = Path(config.log).open("ab") if config.log else None  # noqa: SIM115 - closed by close
        self.journal = Journal(size=config.log_size, file=file)
        # One clock for buckets and log that never runs backwards: epoch seconds.
        self._epoch = time.time() - time.monotonic()
        self._seq = 0
        self.in_flight = 0
        self._begin()

    def _begin(self) -> None:
        config = self.config
        self.quotas: tuple[Quota, ...] = config.quotas
        self.latencies: tuple[Latency, ...] = config.latencies
        self.plan = FaultPlan(seed=config.seed)
        self.plan.add(config.faults, self.now())
        self.max_in_flight = self.in_flight
        self.started_at = self.now()
        self._random = random.Random(config.seed)
        self._accounts: dict[tuple[str, str, str], quota.Account] = {}

    def now(self) -> float:
        """Epoch seconds."""
        return self._epoch + time.monotonic()

    def reset(self) -> None:
        """As if just started: no log, no counts, full buckets, and only what the config set."""
        self.journal.clear()
        self._begin()

    def close(self) -> None:
        """Closes the log file."""
        self.journal.close()

    def set_quotas(self, quotas: tuple[Quota, ...]) -> None:
        """New limits; what accounts owe stays owed."""
        self.quotas = quotas
        now = self.now()
        for key, account in self._accounts.items():
            api, name, model = key
            self._accounts[key] = quota.changed(account, narrowest(quotas, api, model, name), now)

    # -- one request ------------------------------------------------------------------------------

    async def serve(self, request: web.Request, wire: Wire) -> web.StreamResponse:
        """Serves and notes one model call."""
        body = await request.read()
        self._seq += 1
        visit = _Visit(self._seq, self.now(), request, wire)
        try:
            return await self._served(visit, body)
        except (asyncio.CancelledError, ConnectionResetError):
            visit.status = CLIENT_LEFT
            visit.whole = False
            raise
        finally:
            self.journal.note(visit.entry(self.now()))

    async def _served(self, visit: _Visit, body: bytes) -> web.StreamResponse:
        try:
            ask = visit.wire.read(body, self.config.chars_per_token)
        except BadRequestError as error:
            return _failed(visit, Failure(status=400, kind="invalid_request", message=str(error)))
        visit.ask = ask
        fault = self.plan.choose(ask, visit.account, visit.at)
        if fault is not None and fault.kind in DOOR_KINDS:
            return self._failed_by(fault, visit, ask)
        visit.key = self._account_key(ask, visit.account)
        if refusal := self._refused(visit, ask):
            return refusal
        visit.granted = True
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            return await self._granted(visit, ask, fault)
        finally:
            self.in_flight -= 1

    def _account_key(self, ask: Ask, account: str) -> tuple[str, str, str]:
        """Whose buckets a request draws from; opens them when they are new."""
        limit = narrowest(self.quotas, ask.api, ask.model, account)
        own_model = ask.model if limit is not None and limit.model is not None else ""
        key = (ask.api, account, own_model)
        if key not in self._accounts:
            self._accounts[key] = quota.open_account(limit)
        return key

    def _refused(self, visit: _Visit, ask: Ask) -> web.StreamResponse | None:
        """Charges the account, or answers 429 when one of its buckets has not enough."""
        account = self._accounts[visit.key]
        cost = quota.cost_on_arrival(ask.api, ask.input_tokens, ask.max_tokens)
        wait, dimension = account.wait(cost, visit.at)
        if wait == 0.0:
            self._accounts[visit.key] = account.charged(cost, visit.at)
            return None
        visit.fault = "quota"
        message = f"Rate limit reached on {dimension} per min. Please try again in {wait:.3f}s."
        headers = {
            "retry-after": str(math.ceil(wait)),
            "retry-after-ms": str(math.ceil(wait * 1000)),
            **self._limits(visit, account, visit.at),
        }
        return _failed(visit, Failure(status=429, kind=dimension, message=message), headers)

    def _failed_by(self, active: ActiveFault, visit: _Visit, ask: Ask) -> web.StreamResponse:
        """The error answer of a fault."""
        active.struck += 1
        visit.fault = active.kind
        if active.kind == "insufficient_quota":
            return _failed(visit, _NO_CREDIT[ask.api])
        return _failed(visit, _FAILURES[active.kind], _retry_after(active.fault, visit.at))

    async def _granted(
        self, visit: _Visit, ask: Ask, active: ActiveFault | None
    ) -> web.StreamResponse:
        kind = None
        extra_s = 0.0
        if active is not None:
            kind = active.kind
            if kind in ERROR_KINDS:
                return self._failed_by(active, visit, ask)
            active.struck += 1
            visit.fault = kind
            extra_s = active.fault.seconds if kind == "slow" else 0.0
        if kind == "hang":
            await asyncio.Event().wait()
        if kind == "reset":
            _reset(visit.request)
            return web.Response()
        answer = answers.answer(ask, self.config.chars_per_token, kind)
        pace = self._pace(ask, visit.account, answer, extra_s)
        if kind == "content_filter" and ask.api == "anthropic":
            await _sleep(pace.whole_s)
            return _failed(visit, _FILTERED)
        if ask.stream:
            return await self._stream(visit, ask, answer, pace)
        return await self._whole(visit, ask, answer, pace)

    def _pace(self, ask: Ask, account: str, answer: Answer, extra_s: float) -> _Pace:
        latency = narrowest(self.latencies, ask.api, ask.model, account)
        if latency is None:
            return _Pace(first_s=extra_s, whole_s=extra_s)
        waited = extra_s
        if latency.jitter_s:
            waited += self._random.uniform(0.0, latency.jitter_s)
        first = latency.latency_s if latency.first_token_s is None else latency.first_token_s
        whole = latency.latency_s + latency.per_token_s * answer.output_tokens
        return _Pace(first_s=waited + first, whole_s=waited + max(first, whole))

    def _complete(self, visit: _Visit, answer: Answer) -> None:
        """The answer is there: accounts that pay for real output pay now."""
        visit.output_tokens = answer.output_tokens
        cost = quota.cost_on_completion(visit.wire.api, answer.output_tokens)
        account = self._accounts.get(visit.key)
        if account is not None:  # None: a reset came between
            self._accounts[visit.key] = account.charged(cost, self.now())

    def _headers(self, visit: _Visit, base: Mapping[str, str]) -> dict[str, str]:
        headers = {**base, visit.wire.request_id_header: visit.request_id}
        account = self._accounts.get(visit.key)
        if account is not None:
            headers.update(self._limits(visit, account, self.now()))
        return headers

    def _limits(self, visit: _Visit, account: quota.Account, now: float) -> dict[str, str]:
        return dict(visit.wire.limits(account, now)) if self.config.limit_headers else {}

    async def _whole(
        self, visit: _Visit, ask: Ask, answer: Answer, pace: _Pace
    ) -> web.StreamResponse:
        await _sleep(pace.whole_s)
        self._complete(visit, answer)
        headers = self._headers(visit, _JSON)
        visit.status = 200
        if visit.fault == "bad_json":
            return web.Response(body=_NO_JSON, headers=headers)
        body = visit.wire.whole(ask, answer, visit.request_id, visit.at)
        if visit.fault == "cut_json":
            return await _cut(visit.request, body, headers)
        visit.whole = True
        return web.Response(body=body, headers=headers)

    async def _stream(
        self, visit: _Visit, ask: Ask, answer: Answer, pace: _Pace
    ) -> web.StreamResponse:
        stream = visit.wire.events(ask, answer, _pieces(answer.text), visit.request_id, visit.at)
        response = web.StreamResponse(headers=self._headers(visit, _EVENTS))
        await _sleep(pace.first_s)
        visit.status = 200
        await response.prepare(visit.request)
        try:
            visit.whole = await _sent(visit, response, stream, pace)
        finally:
            self._complete(visit, answer)
        return response


class _Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds until the first token, and until the whole answer."""

    first_s: float
    whole_s: float


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


def _pieces(text: str) -> Sequence[str]:
    size = max(_PIECE_CHARS, -(-len(text) // _PIECES))
    return [text[at : at + size] for at in range(0, len(text), size)]


async def _sent(visit: _Visit, response: web.StreamResponse, stream: Stream, pace: _Pace) -> bool:
    """Sends a stream's frames; whether it is whole."""
    fault = visit.fault
    if fault == "stall":
        await response.write(stream.head + b"".join(stream.pieces[:1]))
        await asyncio.Event().wait()
    if fault == "bad_json":
        await response.write(stream.head + b'event: content_block_delta\ndata: {"choi\n\n')
    elif fault == "cut_stream":
        await response.write(stream.head + b"".join(stream.pieces[: len(stream.pieces) // 2]))
    elif fault == "cut_json":
        body = stream.head + b"".join(stream.pieces)
        await response.write(body[: -len(body) // 4])
        _close(visit.request)
    elif pace.whole_s <= pace.first_s:
        await response.write(stream.head + b"".join(stream.pieces) + stream.tail)
        return True
    else:
        await _paced(response, stream, (pace.whole_s - pace.first_s) / max(1, len(stream.pieces)))
        return True
    return False


async def _paced(response: web.StreamResponse, stream: Stream, between_s: float) -> None:
    await response.write(stream.head)
    for piece in stream.pieces:
        await response.write(piece)
        await asyncio.sleep(between_s)
    await response.write(stream.tail)


async def _cut(request: web.Request, body: bytes, headers: Mapping[str, str]) -> web.StreamResponse:
    """Half of the body that the length promises, then the end of the connection."""
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    _close(request)
    return response


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


def _reset(request: web.Request) -> None:
    """Ends the connection with a reset, not in order: nothing lingers, so the kernel sends RST."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _failed(
    visit: _Visit, failure: Failure, headers: Mapping[str, str] | None = None
) -> web.StreamResponse:
    visit.status = failure.status
    return web.Response(
        status=failure.status,
        body=visit.wire.error(failure, visit.request_id),
        headers={**_JSON, visit.wire.request_id_header: visit.request_id, **(headers or {})},
    )


def _retry_after(fault: Fault, now: float) -> dict[str, str]:
    """The header that says when to come back, in the form the fault asks for."""
    seconds = fault.retry_after
    if seconds is None:
        if fault.kind != "429":
            return {}
        seconds = 1.0
    forms = {
        "seconds": {"retry-after": str(math.ceil(seconds))},
        "fraction": {"retry-after": f"{seconds:.3f}"},
        "ms": {"retry-after-ms": str(math.ceil(seconds * 1000))},
        "date": {"retry-after": formatdate(math.ceil(now + seconds), usegmt=True)},
        "none": {},
        "absurd": {"retry-after": _ABSURD},
    }
    return forms[fault.retry_after_form]


# -- the application ------------------------------------------------------------------------------


def create_app(config: Config) -> web.Application:
    """The simulator as an aiohttp application.

    Run it with `handler_cancellation=True`, as `run` does, so that clients who leave are seen.
    """
    from llmtasks.simulator.control import add_control

    simulator = Simulator(config)
    openai, anthropic = OpenAIWire(), AnthropicWire()

    async def chat(request: web.Request) -> web.StreamResponse:
        return await simulator.serve(request, openai)

    async def messages(request: web.Request) -> web.StreamResponse:
        return await simulator.serve(request, anthropic)

    async def count(request: web.Request) -> web.Response:
        try:
            _, tokens = anthropic.count(await request.read(), config.chars_per_token)
        except BadRequestError as error:
            failure = Failure(status=400, kind="invalid_request", message=str(error))
            return web.Response(status=400, body=anthropic.error(failure, ""), headers=_JSON)
        return web.json_response({"input_tokens": tokens})

    async def models(request: web.Request) -> web.Response:
        if simulator.plan.refuses(account_of(request.headers), simulator.now()):
            wire = anthropic if "anthropic-version" in request.headers else openai
            refused = _FAILURES["401"]
            return web.Response(status=401, body=wire.error(refused, ""), headers=_JSON)
        listed = [_model(name) for name in config.models]
        ends = {"first_id": config.models[0], "last_id": config.models[-1]} if listed else {}
        return web.json_response({"object": "list", "data": listed, "has_more": False, **ends})

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def closed(_: web.Application) -> None:
        simulator.close()

    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    for prefix in ("/v1", ""):
        app.router.add_post(f"{prefix}/chat/completions", chat)
        app.router.add_get(f"{prefix}/models", models)
    app.router.add_post("/v1/messages", messages)
    app.router.add_post("/v1/messages/count_tokens", count)
    app.router.add_get("/health", health)
    add_control(app, simulator)
    app.on_cleanup.append(closed)
    return app


def _model(name: str) -> dict[str, str | int]:
    """A model as both protocols list it."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "simulator",
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
    }


class Urls(msgspec.Struct, frozen=True, kw_only=True):
    """Where a running simulator is; the base URLs are what the SDKs want to have."""

    url: str
    openai_base_url: str
    anthropic_base_url: str


def run(
    config: Config,
    host: str = "127.0.0.1",
    port: int = 0,
    on_ready: Callable[[Urls], None] | None = None,
) -> None:
    """Serves in the foreground until SIGTERM or SIGINT. Port 0: any free one.

    `on_ready` is called once it listens. Raises OSError when it cannot listen or cannot open the
    log file.
    """
    asyncio.run(_run(config, host, port, on_ready))


async def _run(
    config: Config, host: str, port: int, on_ready: Callable[[Urls], None] | None
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    runner = web.AppRunner(
        create_app(config),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        if on_ready is not None:
            on_ready(_urls(host, runner.addresses[0][1]))
        await stopping.wait()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await runner.cleanup()


def _urls(host: str, port: int) -> Urls:
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{port}"
    return Urls(url=url, openai_base_url=f"{url}/v1", anthropic_base_url=url)
