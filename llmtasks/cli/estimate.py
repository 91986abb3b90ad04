"""`llmtasks estimate TASK PATH...`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import click

from llmtasks import checks, client
from llmtasks.cli.documents import NOTHING, chunks, left_out_remark
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
from llmtasks.errors import UsageError
from llmtasks.estimates import Estimate, Estimator
from llmtasks.planning import plan
from llmtasks.settings import current
from llmtasks.tasks import database

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
    checks.check(current())
    estimator = Estimator(plan(current(), task_type, checked), database(), tenant, fresh)
    unreadable = 0
    left_out: Counter[str] = Counter()
    for chunk in chunks(client.find_documents(paths, tenant=tenant, left_out=left_out)):
        good = told(chunk)
        unreadable += len(chunk) - len(good)
        estimator.add(good)
    found = estimator.estimate()
    if remark := left_out_remark(left_out):
        print(remark, file=sys.stderr)
    if not found.documents and not unreadable:
        raise UsageError(NOTHING)
    if as_json:
        print_json(estimate_json(found, unreadable))
    else:
        print("\n".join(estimate_lines(found, task_type)))
    return 1 if unreadable or found.unfit else 0


def told(chunk: Iterable[client.FileDocument | client.FileError]) -> list[client.FileDocument]:
    """The documents; of the others it is said on stderr why they are none."""
    good = []
    for one in chunk:
        if isinstance(one, client.FileError):
            print(f"error  {visible(one.message)}", file=sys.stderr, flush=True)
        else:
            good.append(one)
    return good


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
                "most_cost_usd": share.most_cost_usd,
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
        f"{task_type}: {counted(found.documents, 'document')}, {counted(found.calls, 'call')}"
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
            f"  {share.provider} ({share.model}): about {share.calls:,.0f} calls,"
            f" {'unknown' if share.cost_usd is None else money(_rough(share.cost_usd))}"
            for share in found.shares
        ]
    unfit = list(found.unfit.items())
    lines += [f"  {visible(name)}: {why}" for name, why in unfit[:NAMED]]
    if len(unfit) > NAMED:
        lines.append(f"  and {len(unfit) - NAMED:,} more")
    return lines


def _cost(found: Estimate) -> str:
    if found.cost_usd is None:
        return "unknown: no price is known for the model, or it is served at an address of its own"
    assert found.most_cost_usd is not None, "known for the same models"
    return f"about {money(_rough(found.cost_usd))}, at most {money(_rough(found.most_cost_usd))}"


def _rough(cost_usd: float) -> float:
    """Two digits: more would claim to be known."""
    return float(f"{cost_usd:.2g}")


def _time(found: Estimate) -> str:
    if found.seconds is None:
        return "as the providers answer: no limit is configured"
    return f"at least {duration(found.seconds)} within your limits"
