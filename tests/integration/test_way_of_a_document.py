"""A document goes all the way: real workers, a real broker, a real database, a provider over HTTP."""

from __future__ import annotations

import collections

import pytest
from support.stack import provider

pytestmark = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


def test_each_document_becomes_one_row_and_the_second_run_pays_nothing(make_stack, sim, database):
    stack = make_stack(database=database, providers=[provider(sim.openai_url)])
    stack.documents(30)
    for _ in range(2):
        stack.worker(concurrency=8)
    first = stack.finished(stack.submit("summarize", "--all"))
    assert first["state"] == "completed"
    assert first["completed"] == first["total"] == 30
    paid = sim.stats()["answered"]
    assert paid == 30

    batch = stack.submit("summarize", "--all")
    second = stack.finished(batch)
    assert second["completed"] == second["cached"] == 30
    assert second["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert sim.stats()["answered"] == paid

    rows = stack.results(batch)
    assert len({row["document_id"] for row in rows}) == len(rows) == 30
    assert all(row["state"] == "completed" and row["cached"] and row["output"] for row in rows)


def test_every_task_type_gives_its_kind_of_output(make_stack, sim, database):
    stack = make_stack(
        database=database,
        providers=[
            provider(sim.openai_url, "first"),
            provider(sim.anthropic_url, "second", kind="anthropic"),
        ],
    )
    stack.documents(3)
    stack.worker()
    batches = {
        "summarize": stack.submit("summarize", "--all"),
        "extract": stack.submit("extract", "--all"),
        "translate": stack.submit("translate", "--all", "-o", "target_language=es"),
    }
    for task, batch in batches.items():
        status = stack.finished(batch)
        rows = stack.results(batch)
        assert status["state"] == "completed", rows
        assert {row["task_type"] for row in rows} == {task}
        for row in rows:
            assert row["usage"]["input_tokens"] > 0
            assert row["provider"] in ("first", "second")
            assert isinstance(row["output"], dict if task == "extract" else str)


def test_fresh_asks_again(make_stack, sim, database):
    stack = make_stack(database=database, providers=[provider(sim.openai_url)])
    stack.documents(2)
    stack.worker()
    stack.finished(stack.submit("summarize", "--all"))
    status = stack.finished(stack.submit("summarize", "--all", "--fresh"))
    assert status["cached"] == 0
    assert sim.stats()["answered"] == 4


def test_calls_are_split_by_weight(make_stack, sim, database):
    stack = make_stack(
        database=database,
        providers=[
            provider(sim.openai_url, "large", weight=0.7),
            provider(sim.openai_url, "small", weight=0.3),
        ],
    )
    stack.documents(100)
    stack.worker()
    stack.worker()
    batch = stack.submit("summarize", "--all")
    assert stack.finished(batch)["completed"] == 100
    split = collections.Counter(row["provider"] for row in stack.results(batch))
    assert abs(split["large"] - 70) <= 3
    by_model = sim.stats()["by_model"]
    assert split == {name: by_model[f"model-{name}"]["200"] for name in ("large", "small")}


def test_a_changed_document_is_a_new_question(make_stack, sim, database):
    stack = make_stack(database=database, providers=[provider(sim.openai_url)])
    stack.documents(1)
    stack.worker()
    stack.finished(stack.submit("summarize", "--all"))
    (stack.home / "documents" / "doc-00000.txt").write_text("Quite another text about bridges.")
    (line,) = stack.json("documents", "add", str(stack.home / "documents"))
    assert line["status"] == "updated"
    assert stack.finished(stack.submit("summarize", "--all"))["cached"] == 0


def test_tenants_never_share_an_answer(make_stack, sim, database):
    stack = make_stack(database=database, providers=[provider(sim.openai_url)])
    file = stack.home / "same.txt"
    file.write_text("The very same words for both tenants, about a lighthouse.")
    stack.worker()
    for tenant in ("a", "b"):
        stack.json("documents", "add", str(file), "--id", "same", "--tenant", tenant)
        status = stack.finished(stack.submit("summarize", "same", "--tenant", tenant))
        assert status["completed"] == 1
        assert status["cached"] == 0
    assert sim.stats()["answered"] == 2
