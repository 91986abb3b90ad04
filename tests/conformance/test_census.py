"""What a worker process shows of the database."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY
from support.rows import change, claimed, new_job, register
from support.valkey import free_port

from llmtasks import metrics
from llmtasks.settings import Settings
from llmtasks.store import jobs
from llmtasks.store.engine import Database
from workers.census import LOOK_S, Census, rest_s
from workers.maintenance import Maintenance


@pytest.fixture(autouse=True)
def _shows_nothing_afterwards():
    yield
    metrics.census.hide()


def shown(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_jobs_workers_and_slots_are_shown_and_nothing_is_a_zero_not_a_gap(db):
    register(db, "a")
    register(db, "b")
    jobs.insert(db, [new_job("x"), new_job("y")], sent=False)
    claimed(db, "z")
    Census(db).look()
    assert shown("llm_open_jobs", task_type="summarize", state="queued") == 2
    assert shown("llm_open_jobs", task_type="summarize", state="running") == 1
    assert shown("llm_open_jobs", task_type="summarize", state="waiting") == 0
    assert shown("llm_open_jobs", task_type="extract", state="queued") == 0
    assert shown("llm_oldest_queued_job_seconds", task_type="extract") == 0
    assert shown("llm_undelivered_jobs") == 0
    assert shown("llm_workers") == 2
    assert shown("llm_worker_slots", task_type="summarize") == 8
    assert shown("llm_worker_slots", task_type="extract") == 0
    assert shown("llm_database_up") == 1


def test_workers_are_looked_at_each_time_and_jobs_only_when_that_is_due(db):
    census = Census(db)
    census.look()
    register(db)
    jobs.insert(db, [new_job()], sent=False)
    census.look()
    assert shown("llm_workers") == 1
    assert shown("llm_open_jobs", task_type="summarize", state="queued") == 0


def test_without_an_answer_nothing_is_shown_and_everything_again_with_the_next(db):
    census = Census(db)
    census._try()
    assert shown("llm_workers") == 0
    census._db = away = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none")
    census._try()
    away.close()
    assert shown("llm_database_up") == 0
    assert shown("llm_workers") is None
    assert shown("llm_open_jobs", task_type="summarize", state="queued") is None
    census._db = db
    jobs.insert(db, [new_job()], sent=False)
    census._try()
    assert shown("llm_database_up") == 1
    assert shown("llm_open_jobs", task_type="summarize", state="queued") == 1


@pytest.mark.parametrize(
    ("took", "processes", "rest"),
    [(0.001, 1, LOOK_S), (0.001, 1_000, LOOK_S), (1.0, 1, 50.0), (1.0, 5, 50.0), (1.0, 50, 500.0)],
)
def test_a_count_that_takes_long_is_made_seldom_by_few_and_more_seldom_by_many(
    took, processes, rest
):
    assert rest_s(took, processes) == rest


def test_whose_lease_ran_out_is_counted_with_the_jobs_taken_from_it(db):
    def counted() -> list[float | None]:
        return [
            shown("llm_lost_workers_total"),
            shown("llm_taken_over_jobs_total", outcome="requeued"),
            shown("llm_taken_over_jobs_total", outcome="failed"),
        ]

    before = counted()
    register(db, "dead", lease_s=-1.0)
    for name in ("a", "b"):
        claimed(db, name, "dead")
    change(db, "b", crashes=2)
    of_worker = Maintenance.__new__(Maintenance)
    vars(of_worker).update(_db=db, _settings=Settings())
    of_worker._take_over()
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 1]
