"""How commands print: JSON for scripts, short lines for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from llmtasks.client import JobResult
from llmtasks.settings import Provider
from llmtasks.shapes import result_json as result_json  # noqa: PLC0414  # the other
from llmtasks.shapes import status_json as status_json  # noqa: PLC0414  # shapes of commands
from llmtasks.store.batches import BatchStatus

#: What is said of a provider without limits.
NO_LIMIT = "no limit"

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400

F = TypeVar("F", bound=Callable[..., Any])

json_option: Callable[[F], F] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for scripts."
)
tenant_option: Callable[[F], F] = click.option(
    "--tenant", default="default", show_default=True, help="Whose documents these are."
)


def print_json(value: Any) -> None:
    """One line of JSON; text stays readable where the terminal can show it."""
    print(json_text(value, sys.stdout.encoding or "utf-8"))


#: What some readers take for the end of a line, and JSON leaves as it is.
_LINE_ENDS = str.maketrans({char: f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"})


def json_text(value: Any, encoding: str) -> str:
    """JSON on one line for every reader; with escapes where the encoding cannot hold its text."""
    text = json.dumps(value, ensure_ascii=False).translate(_LINE_ENDS)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def money(cost_usd: float | None) -> str:
    """Dollars, or the honest word for a price nobody knows. What is not nothing never reads as $0."""
    if cost_usd is None:
        return "unknown"
    if cost_usd >= 1 or cost_usd == 0:
        return f"${cost_usd:,.2f}"
    if cost_usd < 0.000_001:  # noqa: PLR2004  # what six decimals can say
        return "<$0.000001"
    whole, decimals = f"{cost_usd:.6f}".split(".")
    return f"${whole}.{decimals.rstrip('0'):0<2}"


def price(usd_per_mtok: tuple[float, float] | None) -> str:
    """What tokens cost, input and output."""
    if usd_per_mtok is None:
        return "unknown"
    input_, output = map(_dollars, usd_per_mtok)
    return f"{input_} in, {output} out per million tokens"


def _dollars(amount: float) -> str:
    """With cents, and with more where there are parts of one."""
    return f"${amount:,.2f}" if round(amount, 2) == round(amount, 6) else f"${amount:,.6g}"


#: What a provider's limits per minute count, by the names of admission's dimensions.
UNITS = {
    "requests": "requests",
    "tokens": "tokens",
    "input": "input tokens",
    "output": "output tokens",
}


def quantity(number: float, dimension: str) -> str:
    """So much of what a limit counts, as in "1,500,000 input tokens"."""
    return f"{number:,.10g} {UNITS[dimension]}"


def limits(provider: Provider) -> str:
    """A provider's limits, as in "500 requests, 150,000 tokens per minute, 64 at once"."""
    from llmtasks.admission.limits import DIMENSIONS, per_minute  # loads redis

    rates = zip(DIMENSIONS, per_minute(provider), strict=True)
    counted = [quantity(limit, name) for name, limit in rates if limit is not None]
    said = [f"{', '.join(counted)} per minute"] if counted else []
    if provider.max_concurrency is not None:
        said.append(f"{provider.max_concurrency:,} at once")
    return ", ".join(said) or NO_LIMIT


def duration(seconds: float) -> str:
    """A time in its two largest units: "42 s", "7 min 05 s", "2 h 05 min", "3 d 04 h"."""
    whole = max(0, round(seconds))
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE:02} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE:02} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR:02} h"


def percent(part: int, total: int) -> str:
    """A share in whole percent; 100 % and 0 % are all and nothing, not nearly so."""
    if not total:
        return "0 %"
    share = 100 * part // total
    return f"{max(1, share) if part else 0} %"


def counted(number: int, what: str) -> str:
    """A number of things, as in "1 call" or "2,000 calls"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def visible(text: str) -> str:
    """Foreign text on one line of a terminal: no control characters, which could rewrite the screen."""
    return "".join(char if char.isprintable() else " " for char in text)


#: What the kinds of errors that make jobs wait say of their provider.
_SAID = {
    "RateLimitError": "asked for a pause (429)",
    "QuotaExhausted": "says that the account's quota is used up",
    "AuthenticationFailed": "does not accept the API key",
    "ProviderUnavailable": "is down or overloaded",
    "ProviderTimeout": "does not answer in time",
    "InvalidResponse": "gives broken answers",
}


def spoken(reason: str) -> str:
    """Why a job waits, in words: "openai: RateLimitError" is "openai asked for a pause (429)"."""
    provider, _, kind = visible(reason).rpartition(": ")
    if provider and kind in _SAID:
        return f"{provider} {_SAID[kind]}"
    return visible(reason) or "no reason is known"


def status_lines(status: BatchStatus) -> list[str]:
    """The same for people: what matters first, and why anything waits."""
    counts = ", ".join(
        f"{count:,} {name}"
        for name, count in (
            ("completed", status.completed),
            ("failed", status.failed),
            ("running", status.running),
            ("waiting", status.waiting),
            ("queued", status.queued),
            ("cancelled", status.cancelled),
        )
        if count
    )
    stored = f"{status.cached:,} answered from the store"
    return [
        f"{status.batch_id}  {status.state}",
        f"  jobs    {status.total:,}: {counts or 'none'} ({stored})",
        f"  tokens  {status.input_tokens:,} in, {status.output_tokens:,} out",
        f"  cost    {money(status.cost_usd)}{_not_counted(status)}",
        *(f"  waiting {count:,}: {spoken(reason)}" for reason, count in status.reasons.items()),
    ]


def _not_counted(status: BatchStatus) -> str:
    """That a worker which dies takes what it knew of its calls along."""
    if not status.taken_over:
        return ""
    calls = "one more call" if status.taken_over == 1 else f"up to {status.taken_over:,} more calls"
    return f"; {calls} may have been paid, of workers that died"


def exit_code(status: BatchStatus) -> int:
    """0 while nothing went wrong, 1 when a job failed or was cancelled."""
    return 1 if status.failed or status.cancelled else 0


def result_cells(result: JobResult) -> Mapping[str, Any]:
    """The same as flat cells of a table; a structured output is JSON in its cell."""
    output = result.output
    if output is not None and not isinstance(output, str):
        output = json.dumps(output, ensure_ascii=False)
    return {
        "job_id": result.job_id,
        "document_id": result.document_id,
        "task_type": result.task_type,
        "state": str(result.state),
        "output": output,
        "error_type": result.error_type,
        "error_message": result.error_message,
        "provider": result.provider,
        "model": result.model,
        "input_tokens": result.usage.input_tokens,
        "output_tokens": result.usage.output_tokens,
        "cost_usd": result.cost_usd,
        "cached": result.cached,
    }
