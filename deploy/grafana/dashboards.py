"""Writes the dashboards beside it; `tests/unit/test_dashboards.py` holds them to this file.

    python deploy/grafana/dashboards.py

A panel is one line of a table here: JSON of Grafana's is written by no hand and read by no eye.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("dashboards")
SOURCE = {"type": "prometheus", "uid": "prometheus"}
#: Grafana's grid is 24 wide.
WIDTH = 24
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """What one panel asks: PromQL by legend. `unit` in Grafana's words; `most` is the end of its axis."""

    title: str
    description: str
    unit: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    width: int = 12
    height: int = 8
    most: float | None = None
    stacked: bool = False


def stat(title: str, description: str, unit: str, query: str, legend: str = "") -> Panel:
    """One number, a quarter of a row."""
    return Panel(title, description, unit, [(query, legend or title)], "stat", 6, 4)


FLEET = [
    stat(
        "Jobs completed per minute",
        "Of all workers and task types.",
        "short",
        f'60 * sum(rate(llm_jobs_total{{state="completed"}}{RATE}))',
        "completed",
    ),
    stat(
        "Open jobs",
        "Queued, running or waiting, as the database says.",
        "short",
        "sum(llm:open_jobs:max)",
        "open",
    ),
    stat(
        "Oldest queued job",
        "Since it was submitted.",
        "s",
        "max(llm_oldest_queued_job_seconds)",
        "oldest",
    ),
    stat("Workers", "Processes whose lease is valid.", "short", "max(llm_workers)", "workers"),
    Panel(
        "Jobs ended",
        "Per second, by task type and how they ended.",
        "ops",
        [("llm:jobs_ended:rate5m", "{{task_type}} {{state}}")],
        stacked=True,
    ),
    Panel(
        "Open jobs by state",
        "Queued: to be taken by a slot. Waiting: parked until a provider is free again.",
        "short",
        [("llm:open_jobs:max", "{{task_type}} {{state}}")],
        stacked=True,
    ),
    Panel(
        "Messages in the broker",
        "What no worker has taken yet. Batches are fed a few seconds of work at a time.",
        "short",
        [("max by (queue) (llm_queue_messages)", "{{queue}}")],
    ),
    Panel(
        "Age of the oldest queued job",
        "Since it was submitted.",
        "s",
        [("max by (task_type) (llm_oldest_queued_job_seconds)", "{{task_type}}")],
    ),
    Panel(
        "Jobs that fail",
        "Part of the jobs that ended in the last 15 minutes.",
        "percentunit",
        [("llm:jobs_failed:ratio_rate15m", "{{task_type}}")],
        most=1,
    ),
    Panel(
        "Asked again, by reason",
        "Failures per second after which a question is asked again. Rate limits and outages cost no attempt.",
        "ops",
        [(f"sum by (reason) (rate(llm_retries_total{RATE}))", "{{reason}}")],
    ),
    Panel(
        "Slots",
        "Of the live workers, for each task type that they serve.",
        "short",
        [("max by (task_type) (llm_worker_slots)", "{{task_type}}")],
    ),
    Panel(
        "Taken from dead workers",
        "Jobs that run again, or failed after too many deaths, and leases that ran out.",
        "short",
        [
            (f"sum by (outcome) (increase(llm_taken_over_jobs_total{RATE}))", "jobs {{outcome}}"),
            (f"sum(increase(llm_lost_workers_total{RATE}))", "workers lost"),
        ],
    ),
    Panel(
        "What answers",
        "1 where every worker process reaches it; else somebody does not.",
        "short",
        [
            ("min(llm_database_up)", "database"),
            ('min(llm_admission_state{state="fleet"})', "Redis"),
            ('min by (instance) (up{job="llmtasks"})', "worker {{instance}}"),
        ],
        most=1,
    ),
    Panel(
        "Undelivered to the sink",
        "Ended jobs that [results] sink is still to get.",
        "short",
        [("max(llm_undelivered_jobs)", "jobs")],
    ),
    Panel(
        "Memory",
        "Resident, of each worker process.",
        "bytes",
        [('process_resident_memory_bytes{job="llmtasks"}', "{{instance}}")],
    ),
    Panel(
        "CPU",
        "Cores in use by each worker process.",
        "short",
        [(f'rate(process_cpu_seconds_total{{job="llmtasks"}}{RATE})', "{{instance}}")],
    ),
]

PROVIDERS = [
    stat(
        "Calls in flight",
        "Of all workers.",
        "short",
        "sum(llm_active_requests)",
        "calls",
    ),
    stat(
        "Calls in line",
        "In the longest line of a provider: beyond what it is promised for the next seconds.",
        "short",
        "max(llm_provider_waiting)",
        "waiting",
    ),
    stat(
        "Refused for a limit",
        "The worst provider's part of calls that were answered 429, over 15 minutes. At most 0.1 %.",
        "percentunit",
        "max(llm:calls_limited:ratio_rate15m)",
        "429",
    ),
    stat(
        "Providers that take calls",
        "Not blocked, open or disabled.",
        "short",
        'sum(max by (provider) (llm_provider_state{state="ok"}))',
        "ok",
    ),
    Panel(
        "Limits in use",
        "What calls took in the last minute, as a part of what is configured, in each dimension.",
        "percentunit",
        [("llm:provider_quota_used:ratio_rate1m", "{{provider}} {{dimension}}")],
    ),
    Panel(
        "Used per minute",
        "Requests and tokens, as the provider counts them.",
        "short",
        [
            (
                f"60 * sum by (provider, dimension) (rate(llm_provider_quota_used_total{RATE}))",
                "{{provider}} {{dimension}}",
            ),
        ],
    ),
    Panel(
        "Limits per minute",
        "As configured.",
        "short",
        [
            (
                "max by (provider, dimension) (llm_provider_limit_per_minute)",
                "{{provider}} {{dimension}}",
            )
        ],
    ),
    Panel(
        "Share of the limits that may be used",
        "Less than 1 after a provider refused calls, while it states lower limits, or while it comes back.",
        "percentunit",
        [("min by (provider) (llm_provider_effective_limit_ratio)", "{{provider}}")],
        most=1,
    ),
    Panel(
        "State",
        "The state that each provider is in.",
        "short",
        [("max by (provider, state) (llm_provider_state) == 1", "{{provider}} {{state}}")],
        most=1,
    ),
    Panel(
        "Until it may be called again",
        "By its own word (Retry-After), or after failures.",
        "s",
        [("max by (provider) (llm_provider_next_opening_seconds)", "{{provider}}")],
    ),
    Panel(
        "Calls in line by provider",
        "Who could go to several stands in several lines.",
        "short",
        [("max by (provider) (llm_provider_waiting)", "{{provider}}")],
    ),
    Panel(
        "In flight by provider",
        "Where max_concurrency limits it.",
        "short",
        [("max by (provider) (llm_provider_in_flight)", "{{provider}}")],
    ),
    Panel(
        "Promised ahead",
        "How many seconds of a limit are promised beyond now; 5 at the most.",
        "s",
        [
            (
                "max by (provider, dimension) (llm_provider_promised_seconds)",
                "{{provider}} {{dimension}}",
            )
        ],
    ),
    Panel(
        "Calls by how they ended",
        "Per second. `ok` was whole and accepted.",
        "ops",
        [
            (
                f"sum by (provider, outcome) (rate(llm_calls_total{RATE}))",
                "{{provider}} {{outcome}}",
            )
        ],
        stacked=True,
    ),
    Panel(
        "Time of a call",
        "Half of the calls, and nineteen of twenty, take no longer.",
        "s",
        [
            (
                (
                    "histogram_quantile(0.5, sum by (provider, model, le)"
                    f" (rate(llm_request_duration_seconds_bucket{RATE})))"
                ),
                "{{provider}} {{model}} p50",
            ),
            ("llm:request_duration_seconds:p95_rate5m", "{{provider}} {{model}} p95"),
        ],
    ),
    Panel(
        "Time to the first token",
        "Of streamed calls; half of them, and nineteen of twenty, take no longer.",
        "s",
        [
            (
                (
                    f"histogram_quantile({part}, sum by (provider, model, le)"
                    f" (rate(llm_time_to_first_token_seconds_bucket{RATE})))"
                ),
                "{{provider}} {{model}} " + name,
            )
            for part, name in ((0.5, "p50"), (0.95, "p95"))
        ],
    ),
    Panel(
        "Estimates of input tokens",
        "Estimated by counted: above 1 reserves quota for nothing, below 1 is debt.",
        "none",
        [("llm:input_token_estimate:ratio_rate1h", "{{provider}} {{model}}")],
    ),
    Panel(
        "Who decides on calls",
        "Worker processes by who admits their calls: the fleet, the process alone, or nobody.",
        "short",
        [("sum by (state) (llm_admission_state)", "{{state}}")],
        stacked=True,
    ),
]

COST = [
    stat(
        "Cost of the last hour",
        "Of calls whose price is known.",
        "currencyUSD",
        "sum(llm:cost_usd:increase1h)",
        "known",
    ),
    stat(
        "Cost of the range shown",
        "Of calls whose price is known.",
        "currencyUSD",
        "sum(increase(llm_cost_usd_total[$__range]))",
        "known",
    ),
    stat(
        "Calls of unknown cost",
        "In the range shown: their price is unknown, or whether they were paid. No sum of dollars has them.",
        "short",
        "sum(increase(llm_unpriced_calls_total[$__range]))",
        "calls",
    ),
    stat(
        "Answered without a call",
        "Part of the questions of the last 5 minutes.",
        "percentunit",
        "llm:cache_hits:ratio_rate5m",
        "hits",
    ),
    Panel(
        "Dollars per hour",
        "By provider and model, where the price is known.",
        "currencyUSD",
        [("llm:cost_usd:increase1h", "{{provider}} {{model}}")],
        stacked=True,
    ),
    Panel(
        "Calls of unknown cost per second",
        "`price`: nobody knows what the model costs. `usage`: nobody knows whether the call was paid.",
        "ops",
        [
            (
                f"sum by (provider, model, reason) (rate(llm_unpriced_calls_total{RATE}))",
                "{{provider}} {{model}} {{reason}}",
            )
        ],
    ),
    Panel(
        "Dollars per job",
        "What calls cost in the last hour by the jobs that completed in it, cached ones included.",
        "currencyUSD",
        [
            (
                (
                    "sum(llm:cost_usd:increase1h)"
                    ' / (sum(increase(llm_jobs_total{state="completed"}[1h])) > 0)'
                ),
                "a job",
            )
        ],
    ),
    Panel(
        "Tokens",
        "Per second, as the providers counted them.",
        "short",
        [(f"sum by (model, type) (rate(llm_tokens_total{RATE}))", "{{model}} {{type}}")],
        stacked=True,
    ),
    Panel(
        "Questions by where their answer came from",
        "Per second. A hit is paid by nobody.",
        "ops",
        [(f"sum by (result) (rate(llm_cache_hits_total{RATE}))", "{{result}}")],
        stacked=True,
    ),
    Panel(
        "Single flight",
        "Per second. Who followed waited for the answer that somebody else had asked for.",
        "ops",
        [(f"sum by (role) (rate(llm_single_flight_total{RATE}))", "{{role}}")],
        stacked=True,
    ),
]

DASHBOARDS = {
    "fleet": ("llmtasks: fleet", FLEET),
    "providers": ("llmtasks: providers and quota", PROVIDERS),
    "cost": ("llmtasks: cost", COST),
}


def dashboard(name: str) -> dict[str, Any]:
    """One dashboard as Grafana reads it."""
    title, panels = DASHBOARDS[name]
    return {
        "uid": f"llmtasks-{name}",
        "title": title,
        "tags": ["llmtasks"],
        "schemaVersion": 41,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "llmtasks",
                "tags": ["llmtasks"],
                "asDropdown": False,
                "includeVars": False,
                "keepTime": True,
            }
        ],
        "panels": list(_placed(panels)),
    }


def text(name: str) -> str:
    """The file of one dashboard."""
    return json.dumps(dashboard(name), indent=2) + "\n"


def _placed(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    """From left to right, and a new row where the next one does not fit."""
    x = y = height = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH or panel.height != height:
            x, y, height = 0, y + height if number > 1 else 0, panel.height
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        yield _panel(number, panel, place)
        x += panel.width


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "stat":
        options: dict[str, Any] = {
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "colorMode": "value",
            "graphMode": "area",
        }
    else:
        options = {
            "legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        stacking = {"mode": "normal" if panel.stacked else "none"}
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": stacking,
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place_of),
                "expr": expr,
                "legendFormat": legend,
                "datasource": SOURCE,
            }
            for place_of, (expr, legend) in enumerate(panel.queries)
        ],
    }


if __name__ == "__main__":
    for one in DASHBOARDS:
        (FOLDER / f"{one}.json").write_text(text(one), encoding="utf-8")
