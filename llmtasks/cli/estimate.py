"""`llmtasks estimate TASK PATH...`."""

from __future__ import annotations

from typing import Any

import click

from llmtasks import checks
from llmtasks.cli import files
from llmtasks.cli.options import checked_options, task_options, to_option
from llmtasks.cli.output import (
    counted,
    duration,
    json_option,
    money,
    print_json,
    tenant_option,
    visible,
)
from llmtasks.estimates import Estimate, Estimator
from llmtasks.planning import plan
from llmtasks.settings import current
from llmtasks.store.process import database

#: Documents that fit no provider are named up to so many.
NAMED = 5


@click.command()
@click.argument("task_type", metavar="TASK")
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@to_option
@task_options
@click.option("--fresh", is_flag=True, help="Count stored answers as if they were not there.")
@tenant_option
@json_option
def estimate(
    task_type: str,
    paths: tuple[str, ...],
    to: str | None,
    options: tuple[str, ...],
    tenant: str,
    *,
    fresh: bool,
    as_json: bool,
) -> int:
    """Calls, tokens, cost and time that files and folders will take. Makes no call, stores nothing.

    For example: llmtasks estimate translate docs/ --to es
    """
    checked = checked_options(task_type, options, to)
    checks.askable(current())
    estimator = Estimator(plan(current(), task_type, checked), database(), tenant, fresh)
    unreadable = 0
    for chunk in files.read(paths, None, tenant):
        good = files.told(chunk)
        unreadable += len(chunk) - len(good)
        estimator.add(good)
    found = estimator.estimate()
    if as_json:
        print_json(estimate_json(found, unreadable))
    else:
        print("\n".join(estimate_lines(found, task_type)))
    return 1 if unreadable or found.unfit else 0


def estimate_json(found: Estimate, unreadable: int) -> dict[str, Any]:
    """The shape of `estimate --json`."""
    return {
        "documents": found.documents,
        "errors": unreadable,
        "calls": found.calls,
        "answered": found.answered,
        "repeated": found.repeated,
        "unfit": dict(found.unfit),
        "usage": {"input_tokens": found.input_tokens, "output_tokens": found.output_tokens},
        "cost_usd": found.cost_usd,
        "most_cost_usd": found.most_cost_usd,
        "seconds": found.seconds,
        "providers": [
            {
                "name": share.provider,
                "model": share.model,
                "calls": round(share.calls, 1),
                "usage": {
                    "input_tokens": round(share.input_tokens),
                    "output_tokens": round(share.output_tokens),
                },
                "cost_usd": share.cost_usd,
            }
            for share in found.shares
        ],
    }


def estimate_lines(found: Estimate, task_type: str) -> list[str]:
    """The same for people."""
    answered = [
        f"{found.answered:,} answered already" if found.answered else "",
        f"{found.repeated:,} with another's text" if found.repeated else "",
        f"{len(found.unfit):,} too large for every provider" if found.unfit else "",
    ]
    told = ", ".join(filter(None, answered))
    lines = [
        f"{task_type}: {counted(found.documents, 'document')},"
        f" {'' if found.foreseen else 'at least '}{counted(found.calls, 'call')}"
        + (f" ({told})" if told else "")
    ]
    if found.calls:
        lines += [
            f"  tokens  about {found.input_tokens:,} in, {found.output_tokens:,} out",
            f"  cost    {_cost(found)}",
            f"  time    {_time(found)}",
        ]
    if len(found.shares) > 1:
        lines += [
            f"  {share.provider:<7} {share.model}: {share.calls / found.calls:.0%} of the calls,"
            f" {_about(share.cost_usd)}"
            for share in found.shares
        ]
    unfit = list(found.unfit.items())
    lines += [f"  {visible(name)}: {why}" for name, why in unfit[:NAMED]]
    if len(unfit) > NAMED:
        lines.append(f"  and {len(unfit) - NAMED:,} more")
    return lines


def _cost(found: Estimate) -> str:
    if found.cost_usd is None:
        return f"unknown: {_why_unknown(found)}"
    if found.most_cost_usd is None:
        return _about(found.cost_usd)
    return (
        f"{_about(found.cost_usd)}, up to {money(_rough(found.most_cost_usd))} for longest answers"
    )


def _why_unknown(found: Estimate) -> str:
    if not found.foreseen:
        return "this task type asks as often as it needs"
    return "no price is known for the model, or it is served at an address of its own"


def _about(cost_usd: float | None) -> str:
    return "cost unknown" if cost_usd is None else f"about {money(_rough(cost_usd))}"


def _rough(cost_usd: float) -> float:
    """Two digits: more would claim to be known."""
    return float(f"{cost_usd:.2g}")


def _time(found: Estimate) -> str:
    if found.seconds is None:
        return "as the providers answer: not all of them have a limit"
    return f"at least {duration(found.seconds)} within your limits"
