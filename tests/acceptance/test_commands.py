"""The commands as people and scripts use them: shapes, exit codes, one line for a mistake."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest
import sqlalchemy as sa
from support.rows import new_call, new_result
from support.stack import provider

from llmtasks.cli import VERBS
from llmtasks.store import calls, jobs, tables
from llmtasks.store.retention import DAY_S


@pytest.fixture
def stack(make_stack):
    """An installation whose provider nobody has to call."""
    return make_stack(providers=[provider("http://127.0.0.1:9/v1")])


HELP = """
import sys
from llmtasks.cli import main
sys.argv = ["llmtasks", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
heavy = {"celery", "sqlalchemy", "redis", "openai", "anthropic", "aiohttp", "alembic"}
print(sorted(heavy & set(sys.modules)))
"""


def test_help_lists_every_verb_and_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    for verb in VERBS:
        assert verb in done.stdout


def test_a_producer_loads_no_sdk():
    source = (
        "import sys; from llmtasks import process_document, submit_batch, add_document;"
        "print(sorted({'openai', 'anthropic', 'aiohttp', 'genai_prices', 'alembic', 'redis.asyncio'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_json_shapes_that_scripts_rely_on(make_stack, sim):
    stack = make_stack(providers=[provider(sim.openai_url)])
    (stack.home / "a.txt").write_text("A text about the harbour of Bergen.")
    (stack.home / "empty.txt").write_text("")
    added = stack.json("documents", "add", "a.txt", "empty.txt", code=1)
    for line in added:
        assert line.keys() >= {"path", "document_id", "status", "error"}
    assert [line["status"] for line in added] == ["added", "error"]
    assert stack.json("documents", "add", "a.txt")[0]["status"] == "exists"

    submitted = stack.json("submit", "summarize", "a.txt", "missing")
    assert submitted.keys() == {"batch_id", "jobs"}
    assert submitted["jobs"] == 2
    stack.worker()
    stack.finished(submitted["batch_id"])

    status = stack.json("status", submitted["batch_id"], code=1)
    assert status.keys() >= {
        "batch_id",
        "state",
        "total",
        "queued",
        "running",
        "waiting",
        "completed",
        "failed",
        "cancelled",
        "cached",
        "usage",
        "cost_usd",
    }
    assert status["usage"].keys() == {"input_tokens", "output_tokens"}
    assert (status["state"], status["completed"], status["failed"]) == ("partial", 1, 1)

    printed = stack.cli("results", submitted["batch_id"], code=1).stdout
    good, bad = (json.loads(line) for line in printed.splitlines())
    assert good.keys() >= {
        "job_id",
        "document_id",
        "task_type",
        "state",
        "output",
        "error",
        "provider",
        "model",
        "usage",
        "cost_usd",
        "cached",
    }
    assert (good["state"], good["error"]) == ("completed", None)
    assert bad["state"] == "failed"
    assert bad["error"].keys() == {"type", "message"}
    assert bad["error"]["type"] == "DocumentNotFound"

    table = stack.cli("results", submitted["batch_id"], "--format", "csv", code=1).stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["state"] for row in rows] == ["completed", "failed"]

    assert stack.json("retry", submitted["batch_id"])["jobs"] == 1


def test_ids_come_from_a_file_or_from_stdin(stack):
    done = stack.cli("submit", "summarize", "--ids-from", "-", "--json", stdin="a\n\n b \nc\n")
    assert json.loads(done.stdout)["jobs"] == 3
    (stack.home / "ids").write_text("x\ny\n")
    assert stack.json("submit", "summarize", "--ids-from", "ids")["jobs"] == 2


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["submit", "sumarize", "a"], "summarize"),
        (["submit", "translate", "a"], "--to LANG"),
        (["submit", "translate", "a", "-o", "target_language=martian"], "target_language"),
        (["submit", "summarize", "a", "-o", "max_words=many"], "max_words"),
        (["submit", "summarize", "a", "-o", "max_words"], "key=value"),
        (["submit", "summarize", "a", "-o", "priority=77"], "priority"),
        (["submit", "summarize", "a", "-o", "batch_id=b"], "batch_id"),
        (["submit", "summarize", ""], "empty"),
        (["submit", "summarize"], "--all"),
        (["submit", "summarize", "--all"], "at least one"),
        (["submit", "summarize", "a", "--priority", "10"], "priority"),
        (["status", "nothing"], "nothing"),
        (["results", "nothing"], "nothing"),
        (["cancel", "nothing"], "nothing"),
        (["worker", "--queues", "sumarize"], "sumarize"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_bad_usage_is_one_message_and_exit_code_2(stack, argv, said):
    done = stack.inside(*argv, code=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_shell_sees_one_message_and_exit_code_2(stack):
    done = stack.cli("submit", "sumarize", "a", code=2)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"worker": {"concurency": 3}}, "worker.concurency"),
        ({"database": {"url": "postgresql://nobody@127.0.0.1:1/none"}}, "127.0.0.1"),
        ({"prompts": {"dir": "/does/not/exist"}}, "prompts.dir"),
        ({"metrics": {"host": "203.0.113.1", "password": "x"}}, "metrics.port"),
        ({"metrics": {"host": "0.0.0.0"}}, "metrics.password"),
        ({"tasks.sumarize": {"temperature": 0}}, "tasks.sumarize"),
        ({"local": {"data_dir": "/dev/null/x"}}, "data_dir"),
    ],
)
def test_a_worker_that_cannot_work_says_so_before_it_takes_a_job(stack, sections, said):
    stack.configure(**sections)
    done = stack.cli("worker", code=None)
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_key_is_named_before_anything_starts(stack):
    del stack.env["SIMULATOR_KEY"]
    done = stack.cli("worker", code=2)
    assert "SIMULATOR_KEY" in done.stderr
    assert "providers.sim.api_key_env" in done.stderr


def test_migrate_can_be_repeated_and_a_configured_database_is_not_migrated_behind_your_back(
    make_stack, postgres
):
    with postgres.database(migrated=False) as url:
        stack = make_stack(
            providers=[provider("http://127.0.0.1:9/v1")], settings={"database": {"url": url}}
        )
        assert "llmtasks migrate" in stack.cli("submit", "summarize", "x", code=2).stderr
        assert stack.json("migrate")["from"] is None
        assert stack.json("migrate")["from"] == stack.json("migrate")["to"]
        assert stack.json("submit", "summarize", "x")["jobs"] == 1


def test_maintenance_removes_what_is_too_old_and_says_before_what_that_would_be(stack):
    stack.configure(retention={"jobs_days": 30, "answers_days": 7})
    stack.documents(3)
    old, young = (stack.submit("summarize", "--all") for _ in range(2))
    for batch, days in ((old, 40), (young, 20)):
        _end_all(stack.database, batch, days)

    would = stack.json("maintenance", "--dry-run")
    assert would == {
        "dry_run": True,
        "answers": 6,
        "jobs": 3,
        "batches": 1,
        "documents": 0,
        "texts": 0,
    }
    assert stack.status(old)["total"] == 3, "it only counted"
    assert stack.cli("maintenance", "--dry-run").stdout.splitlines() == [
        "answers: 6 would be removed",
        "jobs: 3 would be removed",
        "batches: 1 would be removed",
    ]

    assert stack.json("maintenance") == would | {"dry_run": False}
    stack.cli("status", old, code=2)
    assert stack.status(young)["completed"] == 3
    assert all(call.answer is None for row in stack.results(young) for call in _calls(stack, row))
    assert stack.cli("maintenance").stdout == "there is nothing to remove\n"


def _calls(stack, row):
    found = stack.calls(row["job_id"])
    assert found, "what it cost stays"
    return found


def _end_all(db, batch_id, days_ago):
    """Complete the jobs of a batch, each with its call, so long ago."""
    with db.read() as connection:
        of_batch = sa.select(tables.jobs.c.job_id).where(tables.jobs.c.batch_id == batch_id)
        job_ids = connection.scalars(of_batch).all()
    for job_id in job_ids:
        job = jobs.claim(db, job_id, "worker")
        calls.record(db, job, [new_call(job_id)])
        assert jobs.complete(db, job, new_result())
    then = db.now() - days_ago * DAY_S
    with db.write() as connection:
        for table, columns in (
            (tables.jobs, ("created_at", "finished_at", "sent_at")),
            (tables.provider_calls, ("created_at",)),
            (tables.batches, ("created_at",)),
        ):
            aged = sa.update(table).where(table.c.batch_id == batch_id)
            connection.execute(aged.values(dict.fromkeys(columns, then)))
