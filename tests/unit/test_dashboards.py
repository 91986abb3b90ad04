"""The dashboards are what their table says, and ask for what there is."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from support import monitoring
from support.monitoring import ROOT

SCRIPT = ROOT / "deploy/grafana/dashboards.py"
#: Of Grafana's own list of units.
UNITS = {"short", "none", "ops", "s", "percentunit", "bytes", "currencyUSD"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grafana_dashboards", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_files_are_made_of_the_table(script):
    assert {path.stem for path in monitoring.DASHBOARDS} == script.DASHBOARDS.keys()
    for path in monitoring.DASHBOARDS:
        assert path.read_text(encoding="utf-8") == script.text(path.stem), f"run {SCRIPT.name}"


@pytest.mark.parametrize("path", monitoring.DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_shows_and_in_which_unit(path):
    panels = monitoring.panels(path)
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    titles = [panel["title"] for panel in panels]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("path", monitoring.DASHBOARDS, ids=lambda path: path.stem)
def test_no_panel_lies_on_another(path):
    taken = set()
    for panel in monitoring.panels(path):
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & taken, panel["title"]
        assert max(x for x, _ in own) < 24
        taken |= own


def test_legends_name_labels_that_their_query_keeps():
    for path in monitoring.DASHBOARDS:
        for panel in monitoring.panels(path):
            for target in panel["targets"]:
                legend, query = target["legendFormat"], target["expr"]
                for label in (part.split("}}")[0].strip() for part in legend.split("{{")[1:]):
                    kept = label in query or ":" in query or "by (" not in query
                    assert kept, (panel["title"], legend)
