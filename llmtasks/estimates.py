"""What a pile of documents will cost, before anybody is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmtasks.admission import limits
from llmtasks.admission.decisions import Claim
from llmtasks.errors import DocumentError
from llmtasks.messages import Request, Usage
from llmtasks.planning import Plan
from llmtasks.providers.prices import cost_usd
from llmtasks.settings import Provider
from llmtasks.store import results
from llmtasks.store.documents import NewDocument
from llmtasks.store.engine import Database
from llmtasks.task_types import Document, TaskType


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one provider is expected to do, counted in its own tokens.

    `output_tokens` are what answers are likely to have; `cost_usd` is their price in US dollars, None where
    none is known.
    """

    provider: str
    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    cost_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One call per question: that a cut or useless answer is asked for once more is not foreseen.

    `answered` documents have a stored answer, `repeated` ones the same text as another of them; `unfit`
    ones fit no provider, with the reason, and will fail. `most_cost_usd` is the price if every answer were
    as long as it may be, from the dearest provider; `seconds` is what the limits make of it at the least,
    None where somebody has none. A task type that asks in its own way is not `foreseen`: it takes `calls`
    at the least, and its cost is not known.
    """

    documents: int
    calls: int
    answered: int
    repeated: int
    unfit: Mapping[str, str]
    shares: Sequence[Share]
    most_cost_usd: float | None
    seconds: float | None
    foreseen: bool

    @property
    def input_tokens(self) -> int:
        """Tokens of all questions."""
        return round(sum(share.input_tokens for share in self.shares))

    @property
    def output_tokens(self) -> int:
        """Tokens that the answers are likely to have."""
        return round(sum(share.output_tokens for share in self.shares))

    @property
    def cost_usd(self) -> float | None:
        """Dollars, likely; None when one price is unknown."""
        return _sum([share.cost_usd for share in self.shares])


@dataclass(slots=True)
class _Load:
    """What a provider would do if it answered all the questions of a group by itself."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    reserved_tokens: int = 0  # of output, as its limits count them
    cost_usd: float | None = 0.0

    def add(self, provider: Provider, input_tokens: int, likely: int, most: int) -> None:
        self.calls += 1
        self.input_tokens += input_tokens
        self.output_tokens += likely
        # Anthropic counts the answer that was given, others the answer that was allowed.
        self.reserved_tokens += likely if provider.kind == "anthropic" else most
        self.cost_usd = _plus(self.cost_usd, _price(provider, input_tokens, likely))

    def seconds(self, provider: Provider) -> float | None:
        """How long its limits make it take; None without any."""
        used = (
            self.calls,
            self.input_tokens + self.reserved_tokens,
            self.input_tokens,
            self.reserved_tokens,
        )
        rates = limits.rates(provider)
        return max((r * n for r, n in zip(rates, used, strict=True) if r), default=None)


@dataclass(slots=True)
class Estimator:
    """Takes documents as they come and forgets their texts.

    Args:
        plan: What is asked about each.
        db: Where answers may be stored already.
        tenant: Whose they are.
        fresh: Stored answers do not count.
    """

    plan: Plan
    db: Database
    tenant: str = "default"
    fresh: bool = False
    _documents: int = 0
    _answered: int = 0
    _repeated: int = 0
    _calls: int = 0
    _most_usd: float | None = 0.0
    _unfit: dict[str, str] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    #: By the providers that a question fits: mostly one group, of all of them.
    _groups: dict[tuple[str, ...], dict[str, _Load]] = field(default_factory=dict)

    def add(self, documents: Sequence[NewDocument]) -> None:
        """Count some more documents."""
        keys = [self.plan.answer_key(self.tenant, one.content_hash) for one in documents]
        known = [] if self.fresh else [key for key in keys if key is not None]
        stored = results.answered(self.db, self.tenant, known)
        for document, key in zip(documents, keys, strict=True):
            self._documents += 1
            if key in stored:
                self._answered += 1
            elif key in self._asked and not self.fresh:
                self._repeated += 1
            else:
                self._ask(document, key)

    def estimate(self) -> Estimate:
        """What all of them will take."""
        foreseen = type(self.plan.kind).run is TaskType.run
        by_name = {provider.name: provider for provider in self.plan.providers}
        shares: list[Share] = []
        times: list[float | None] = []
        for loads in self._groups.values():
            parts, took = _split([(by_name[name], load) for name, load in loads.items()])
            times.append(took)
            shares += [
                _share(by_name[name], loads[name], part, foreseen=foreseen)
                for name, part in parts.items()
            ]
        return Estimate(
            documents=self._documents,
            calls=self._calls,
            answered=self._answered,
            repeated=self._repeated,
            unfit=dict(self._unfit),
            shares=_merged(shares),
            most_cost_usd=self._most_usd if foreseen else None,
            # Groups may be worked on side by side.
            seconds=None if None in times else max(_known(times), default=None),
            foreseen=foreseen,
        )

    def _ask(self, new: NewDocument, key: str | None) -> None:
        document = Document(new.document_id, new.text)
        try:
            request = self.plan.request(document)
            tokens = self.plan.input_tokens(request)
            fitting = limits.fitting(self.plan.providers, _claim(request, tokens))
        except DocumentError as error:
            self._unfit[new.document_id] = str(error)
            return
        if key is not None:
            self._asked.add(key)
        self._calls += 1
        most = request.max_output_tokens
        likely = min(most, self.plan.kind.expected_output_tokens(document, self.plan.options))
        loads = self._groups.setdefault(tuple(p.name for p in fitting), {})
        dearest: float | None = 0.0
        for provider in fitting:
            loads.setdefault(provider.name, _Load()).add(
                provider, tokens[provider.name], likely, most
            )
            price = _price(provider, tokens[provider.name], most)
            dearest = None if dearest is None or price is None else max(dearest, price)
        self._most_usd = _plus(self._most_usd, dearest)


def _claim(request: Request, tokens: Mapping[str, int]) -> Claim:
    return Claim(
        attempt_id="",
        waiter="",
        key=None,
        providers=tuple(tokens),
        input_tokens=max(tokens.values()),
        output_tokens=request.max_output_tokens,
    )


def _split(
    loads: Sequence[tuple[Provider, _Load]],
) -> tuple[dict[str, float], float | None]:
    """The part of the calls that each provider answers, and the seconds it takes; None: no limit says.

    In a backlog everybody is asked as fast as its limits allow, whatever the weights say. They rule where
    somebody has no limit: nobody knows then how fast it goes. Standbys answer only where nobody else can.
    """
    able = [(p, load) for p, load in loads if p.weight] or list(loads)
    alone = {provider.name: load.seconds(provider) for provider, load in able}
    speeds = {name: 1 / seconds for name, seconds in alone.items() if seconds is not None}
    if len(speeds) == len(able):
        total = sum(speeds.values())
        return {name: speed / total for name, speed in speeds.items()}, 1 / total
    weights = {provider.name: provider.weight or 1.0 for provider, _ in able}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}, None


def _share(provider: Provider, load: _Load, part: float, *, foreseen: bool) -> Share:
    known = load.cost_usd is not None and foreseen
    return Share(
        provider=provider.name,
        model=provider.model,
        calls=part * load.calls,
        input_tokens=part * load.input_tokens,
        output_tokens=part * load.output_tokens,
        cost_usd=part * load.cost_usd if known and load.cost_usd is not None else None,
    )


def _merged(shares: Sequence[Share]) -> list[Share]:
    """One share a provider."""
    merged: dict[str, Share] = {}
    for share in shares:
        before = merged.get(share.provider)
        merged[share.provider] = share if before is None else _together(before, share)
    return list(merged.values())


def _together(one: Share, other: Share) -> Share:
    return replace(
        one,
        calls=one.calls + other.calls,
        input_tokens=one.input_tokens + other.input_tokens,
        output_tokens=one.output_tokens + other.output_tokens,
        cost_usd=_plus(one.cost_usd, other.cost_usd),
    )


def _price(provider: Provider, input_tokens: int, output_tokens: int) -> float | None:
    usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    return cost_usd(provider.kind, provider.base_url, provider.model, usage)


def _plus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _sum(costs: Sequence[float | None]) -> float | None:
    return None if None in costs else sum(_known(costs))


def _known(numbers: Sequence[float | None]) -> Iterator[float]:
    return (number for number in numbers if number is not None)
