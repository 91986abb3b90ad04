"""The simulator's values: frozen, and checked when they are read from JSON.

Durations are seconds, limits are per minute. `Quota`, `Latency` and `Fault` can be narrowed to an
`api` ("openai" or "anthropic"), a `model` and an `account`; None means any. Where several quotas
or latencies fit a request, the narrowest holds, and of equally narrow ones the latest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

Api = Literal["openai", "anthropic"]

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]

#: Faults answered before the quota is looked at; they cost the account nothing.
DoorKind = Literal["429", "401", "insufficient_quota"]
#: Faults answered with an error after the request was charged.
ErrorKind = Literal["400", "context_window", "500", "503", "529"]
#: Faults of the connection or the form of an answer.
#: hang: nothing is ever sent; reset: the connection is reset; cut_json: the body ends early;
#: bad_json: status 200 and no JSON; cut_stream: a stream ends without a finish; stall: a stream
#: begins and never goes on. The last two strike streamed requests only.
WireKind = Literal["hang", "reset", "cut_json", "bad_json", "cut_stream", "stall"]
#: Faults inside an answer that is right in its protocol.
#: length: cut in half; bad_answer: the content is not of the asked schema (without one: empty).
AnswerKind = Literal["length", "refusal", "content_filter", "bad_answer", "slow"]

RetryAfterForm = Literal["seconds", "fraction", "ms", "date", "none", "absurd"]


class _Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Scope(_Value, frozen=True, kw_only=True):
    """Which requests a value is for."""

    api: Api | None = None
    model: str | None = None
    account: str | None = None

    def fits(self, api: str, model: str, account: str) -> bool:
        """Whether a request of this kind is meant."""
        return (
            (self.api is None or self.api == api)
            and (self.model is None or self.model == model)
            and (self.account is None or self.account == account)
        )

    @property
    def selectors(self) -> tuple[str | None, str | None, str | None]:
        """What narrows this value."""
        return (self.api, self.model, self.account)

    @property
    def narrowness(self) -> int:
        """How many selectors are given."""
        return sum(selector is not None for selector in self.selectors)


class Quota(Scope, frozen=True, kw_only=True):
    """Limits of each account, per minute; None: no limit.

    Every limit is a bucket refilled continuously, full at the start. It holds `burst_s` seconds of
    its rate, or the largest request so far where that is more. With `model` given, that model has
    buckets of its own; otherwise an account's models share them.
    """

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    input_tokens_per_minute: Positive | None = None
    output_tokens_per_minute: Positive | None = None
    burst_s: Positive = 1.0


class Latency(Scope, frozen=True, kw_only=True):
    """How long an answer takes: latency_s + uniform(0, jitter_s) + per_token_s per output token.

    A stream's first token comes after `first_token_s` (None: latency_s) plus jitter, the others
    spread evenly over the rest.
    """

    latency_s: NotNegative = 0.0
    jitter_s: NotNegative = 0.0
    per_token_s: NotNegative = 0.0
    first_token_s: NotNegative | None = None


class Fault(Scope, frozen=True, kw_only=True):
    """A fault on demand. Every condition that is given must hold for a request to be struck.

    next: strikes so many requests, then never again.  rate: strikes with this probability.
    match: strikes prompts that contain this text.     for_s: strikes for so many seconds,
    beginning `after_s` after it was set. With none of them it strikes every request.
    `retry_after` (seconds) goes out in the form `retry_after_form` with 429, 503 and 529; a 429
    says one second if nothing is given. `seconds` is how much longer a slow answer takes.
    """

    kind: DoorKind | ErrorKind | WireKind | AnswerKind
    next: Count | None = None
    rate: Annotated[float, Meta(ge=0, le=1)] | None = None
    match: Annotated[str, Meta(min_length=1)] | None = None
    for_s: Positive | None = None
    after_s: NotNegative = 0.0
    retry_after: NotNegative | None = None
    retry_after_form: RetryAfterForm = "seconds"
    seconds: NotNegative = 10.0


class Config(_Value, frozen=True, kw_only=True):
    """Everything a simulator starts with. `log` is a file that gets a JSON line per request.

    Without `limit_headers` its responses do not say which limits there are.
    """

    quotas: tuple[Quota, ...] = ()
    latencies: tuple[Latency, ...] = ()
    faults: tuple[Fault, ...] = ()
    seed: int = 0
    chars_per_token: Positive = 4.0
    limit_headers: bool = True
    models: tuple[str, ...] = ("sim-small", "sim-large")
    log: str | None = None
    log_size: Count = 200_000


S = TypeVar("S", bound=Scope)


def narrowest(values: tuple[S, ...], api: str, model: str, account: str) -> S | None:
    """The value that holds for a request; None when none fits."""
    fitting = [value for value in values if value.fits(api, model, account)]
    return max(reversed(fitting), key=lambda value: value.narrowness, default=None)


def replaced(values: tuple[S, ...], new: S) -> tuple[S, ...]:
    """`values` with `new` in the place of the one that has the same selectors."""
    return (*(old for old in values if old.selectors != new.selectors), new)


def read(body: bytes, kind: type[S]) -> S:
    """One value from JSON; raises ValueError with one line that names the field."""
    return _convert(_json(body), kind)


def read_faults(body: bytes) -> tuple[Fault, ...]:
    """One fault or a list of them from JSON; raises ValueError with one clear line."""
    data = _json(body)
    items = data if isinstance(data, list) else [data]
    return tuple(_convert(_kind_as_text(item), Fault) for item in items)


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


def _convert(data: Any, kind: type[S]) -> S:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{kind.__name__.lower()}: {error}") from error


def _kind_as_text(item: Any) -> Any:
    """A kind written as a number, as in {"kind": 500}, is meant as its text."""
    if isinstance(item, Mapping) and type(item.get("kind")) is int:
        return {**item, "kind": str(item["kind"])}
    return item
