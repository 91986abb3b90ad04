"""What Prometheus and Grafana are told to ask: the rules and the dashboards as they are deployed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llmtasks import metrics

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = ROOT / "deploy/prometheus"

#: What Grafana fills in by itself.
FILLED_IN = {"$__rate_interval": "1m", "$__range": "1h"}


def panels(path: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard."""
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["panels"]
    return found


def asked(panel: dict[str, Any]) -> list[str]:
    """The queries of a panel, as Prometheus gets them."""
    return [_filled(target["expr"]) for target in panel["targets"]]


def _filled(query: str) -> str:
    for name, value in FILLED_IN.items():
        query = query.replace(name, value)
    return query


def queries() -> list[str]:
    """Every query of every dashboard."""
    return [query for path in DASHBOARDS for panel in panels(path) for query in asked(panel)]


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    import yaml  # of the dependency group `package`, which collecting the other tests needs not

    groups = yaml.safe_load((RULES / name).read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def series() -> dict[str, set[str]]:
    """Every series that a worker serves, or that Prometheus makes of one, by name, with its labels."""
    own = {"job", "instance", "host"}
    found = {"up": own, "process_resident_memory_bytes": own, "process_cpu_seconds_total": own}
    for one in metrics.catalogue():
        labels = {*one.labels, *own}
        if one.kind == "histogram":
            found[f"{one.name}_bucket"] = labels | {"le"}
            found[f"{one.name}_sum"] = found[f"{one.name}_count"] = labels
        else:
            found[one.name] = labels
    return found


def names(query: str) -> set[str]:
    """The series that a query asks for."""
    return set(re.findall(r"\b(?:llm[_:][\w:]+|process_\w+|up)\b", re.sub(r'"[^"]*"', "", query)))


def labels(query: str) -> set[str]:
    """The labels that a query selects, or groups by."""
    found = set(re.findall(r"(\w+)=~?\"", query)) | set(re.findall(r"(\w+)!~?=?\"", query))
    for group in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", query):
        found |= {one.strip() for one in group.split(",")} - {""}
    return found
