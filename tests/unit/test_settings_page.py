"""The page of all settings says what the program does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from llmtasks import settings

SCRIPT = Path(__file__).parents[2] / "docs" / "configuration.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_configuration", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_every_key_says_what_it_means(script):
    for title, struct, _ in script.sections():
        missing = {key for key, _, _ in script.keys(struct)} - script.docstrings(struct).keys()
        assert not missing, f"{title}: no text below {sorted(missing)}"


def test_the_page_is_made_of_these_settings(script):
    assert script.PAGE.read_text(encoding="utf-8") == script.page(), "run make docs"


def test_the_complete_example_of_the_page_is_accepted(script, tmp_path):
    (tmp_path / "llmtasks.toml").write_text(script.EXAMPLE)
    environ = {"LLMTASKS_FLOWER__PASSWORD": "p", "LLMTASKS_METRICS__PASSWORD": "p"}
    assert len(settings.load(environ, tmp_path).providers) == 3
