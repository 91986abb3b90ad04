"""What a pile of documents will cost, before anybody is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmtasks.admission import limits
from llmtasks.admission.decisions import Claim
from llmtasks.errors import DocumentError
from llmtasks.messages import Usage
from llmtasks.planning import Plan
from llmtasks.providers.prices import cost_usd
from llmtasks.settings import Provider
from llmtasks.store import results
from llmtasks.store.documents import NewDocument
from llmtasks.store.engine import Database
from llmtasks.task_types import Document


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one provider is expected to do: its weight's part of the calls, each counted in its own tokens.

    Output is what answers are likely to have; `most_output_tokens` what they may have at the most.
    Costs are in US dollars, None where no price is known; `seconds` is what its limits make of it, None
    without limits.
    """

    provider: str
    model: str
    calls: float
    input_tokens: float
    output_tokens: float
    most_output_tokens: float
    cost_usd: float | None
    most_cost_usd: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One call per question: a cut or unusable answer is asked for once more, which is not foreseen here.

    `answered` documents have a stored answer, `repeated` ones the same text as another of them; `unfit`
    ones fit no provider, with the reason, and will fail.
    """

    documents: int
    calls: int
    answered: int
    repeated: int
    unfit: Mapping[str, str]
    shares: Sequence[Share]

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

    @property
    def most_cost_usd(self) -> float | None:
        """Dollars if every answer were as long as it may be; None when one price is unknown."""
        return _sum([share.most_cost_usd for share in self.shares])

    @property
    def seconds(self) -> float | None:
        """How long the limits make it take, at the least; None without limits."""
        return max((s.seconds for s in self.shares if s.seconds is not None), default=None)


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
    _unfit: dict[str, str] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _totals: dict[str, list[float]] = field(default_factory=dict)
    _calls: int = 0

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
        return Estimate(
            documents=self._documents,
            calls=self._calls,
            answered=self._answered,
            repeated=self._repeated,
            unfit=dict(self._unfit),
            shares=[
                _share(provider, *self._totals[provider.name])
                for provider in self.plan.providers
                if provider.name in self._totals
            ],
        )

    def _ask(self, new: NewDocument, key: str | None) -> None:
        document = Document(new.document_id, new.text)
        try:
            request = self.plan.request(document)
            tokens = self.plan.input_tokens(request)
            fitting = limits.fitting(
                self.plan.providers,
                Claim(
                    attempt_id="",
                    key=None,
                    providers=tuple(tokens),
                    input_tokens=max(tokens.values()),
                    output_tokens=request.max_output_tokens,
                ),
            )
        except DocumentError as error:
            self._unfit[new.document_id] = str(error)
            return
        if key is not None:
            self._asked.add(key)
        self._calls += 1
        most = request.max_output_tokens
        likely = min(most, self.plan.kind.expected_output_tokens(document, self.plan.options))
        for provider, part in _parts(fitting).items():
            totals = self._totals.setdefault(provider, [0.0, 0.0, 0.0, 0.0])
            for index, amount in enumerate((1, tokens[provider], likely, most)):
                totals[index] += part * amount


def _parts(providers: Sequence[Provider]) -> dict[str, float]:
    """The part of a call that each provider answers on the average; standbys only where nobody else is."""
    total = sum(provider.weight for provider in providers)
    if total == 0:
        return {provider.name: 1 / len(providers) for provider in providers}
    return {p.name: p.weight / total for p in providers if p.weight}


def _share(
    provider: Provider, calls: float, input_tokens: float, output_tokens: float, most: float
) -> Share:
    def cost(output: float) -> float | None:
        # Prices step with the size of a call, so the average call is priced, not the sum.
        usage = Usage(input_tokens=round(input_tokens / calls), output_tokens=round(output / calls))
        one = cost_usd(provider.kind, provider.base_url, provider.model, usage)
        return None if one is None else one * calls

    return Share(
        provider=provider.name,
        model=provider.model,
        calls=calls,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        most_output_tokens=most,
        cost_usd=cost(output_tokens),
        most_cost_usd=cost(most),
        seconds=_seconds(provider, calls, input_tokens, most),
    )


def _seconds(
    provider: Provider, calls: float, input_tokens: float, output_tokens: float
) -> float | None:
    """The slowest of its limits; the answers' limits are what is reserved."""
    used = (calls, input_tokens + output_tokens, input_tokens, output_tokens)
    rates = limits.rates(provider)
    seconds = [rate * amount for rate, amount in zip(rates, used, strict=True) if rate]
    return max(seconds, default=None)


def _sum(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None
