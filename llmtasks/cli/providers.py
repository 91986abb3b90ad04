"""`llmtasks providers`: how each configured provider stands, and what it was used for. Starts nothing."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence

import click

from llmtasks import watching
from llmtasks.admission import HANGS_S, ProviderState, ProviderStatus, fleet_of
from llmtasks.cli.output import (
    NO_LIMIT,
    UNITS,
    duration,
    json_option,
    price,
    print_json,
    quantity,
    spoken,
    visible,
)
from llmtasks.errors import AdmissionUnavailable, StoreUnavailable
from llmtasks.settings import Settings, current, current_origin, require_providers
from llmtasks.standings import Standing, standing_json, standings, uses
from llmtasks.store.calls import Recent


@click.command()
@json_option
def providers(*, as_json: bool) -> int:
    """How the providers stand: state, use of their limits, share of the work, price.

    What was used is what was answered; a provider may count more, such as calls that failed. Exit
    code 1 when the fleet's Redis or the database does not answer.
    """
    settings = current()
    require_providers(settings, current_origin())
    statuses, trouble = _statuses(settings)
    recent, lost = _recent()
    found = list(standings(settings.providers, statuses, recent))
    if as_json:
        print_json([standing_json(one, trouble) for one in found])
    else:
        _print(found, trouble)
    if lost:
        print(f"llmtasks: {lost}", file=sys.stderr)
    return 1 if trouble or lost else 0


def state_words(status: ProviderStatus | None, trouble: str = "") -> str:
    """How a provider stands, for people."""
    if status is None:
        return f"unknown: {trouble}"
    if status.state == ProviderState.OK:
        return "ok"
    if status.state == ProviderState.HALF_OPEN:
        return "one call probes it"
    why = spoken(f"{status.name}: {status.reason}")
    return f"{status.state} {duration(status.next_opening)}: {why}"


def _statuses(settings: Settings) -> tuple[dict[str, ProviderStatus], str]:
    """The providers as the fleet sees them, and why that is not known."""
    ours = settings.embedded and settings.redis.url is None
    if ours and not settings.socket_path.exists():
        return {}, "the embedded server is not running"
    try:
        found = asyncio.run(_ask(settings))
    except AdmissionUnavailable:
        return {}, "Redis does not answer"
    return {status.name: status for status in found}, ""


async def _ask(settings: Settings) -> list[ProviderStatus]:
    admission = fleet_of(settings)
    try:
        async with asyncio.timeout(HANGS_S):
            return await admission.status()
    except TimeoutError:
        raise AdmissionUnavailable("the fleet's Redis hangs") from None
    finally:
        await admission.aclose()


def _recent() -> tuple[Recent | None, str]:
    try:
        return watching.recent_answers(), ""
    except StoreUnavailable as error:
        return None, f"the database does not answer: {error}"


def _print(standings: Sequence[Standing], trouble: str) -> None:
    """A paragraph for each: every fact on a line of its own fits any terminal and greps well."""
    for number, one in enumerate(standings):
        if number:
            print()
        standby = " (standby)" if one.provider.weight == 0 else ""
        print(f"{one.provider.name}{standby}  {state_words(one.status, trouble)}")
        for name, text in _facts(one):
            print(f"  {name:<10}{visible(text)}")


def _facts(one: Standing) -> Iterator[tuple[str, str]]:
    status, answered = one.status, one.answered
    yield "model", f"{one.provider.model} ({one.provider.kind})"
    if one.provider.max_concurrency is not None:
        in_flight = "unknown" if status is None else f"{status.in_flight or 0}"
        yield "in flight", f"{in_flight} of {one.provider.max_concurrency}"
    for name, limit, used in uses(one):
        shown = "unknown" if used is None else f"{used:,}"
        if limit is not None:
            yield "minute", f"{shown} of {quantity(limit, name)}"
        elif name in {"requests", "tokens"}:
            yield "minute", f"{shown} {UNITS[name]}, {NO_LIMIT}"
    if status is not None and status.effective_ratio < 1:
        yield (
            "limits",
            f"at {100 * status.effective_ratio:.0f} %: it refused more, or is coming back",
        )
    if status is not None and status.waiting:
        yield "waiting", f"{status.waiting:,}"
    if status is not None and status.next_free > 0:
        yield "next call", f"in {duration(status.next_free)} at the earliest"
    if answered is not None and one.recent is not None:
        part = "no" if one.share is None else f"{100 * one.share:.0f} % of all"
        back = duration(one.recent.seconds)
        told = f"{answered.calls:,} in the last {back}, {part} answers"
        yield "answers", f"{told}; by weight {100 * one.expected_share:.0f} %"
    yield "price", price(one.price)
