"""Workers in both databases: leases, and the jobs of the dead."""

from __future__ import annotations

import sqlalchemy as sa
from support.rows import at_once, change, claimed, column, new_job, new_result, register

from llmtasks.cli.output import status_lines
from llmtasks.jobs import JobState
from llmtasks.store import batches, feed, jobs, workers
from llmtasks.store.engine import epoch
from llmtasks.store.tables import workers as workers_table
from llmtasks.store.workers import Reaped

NOTHING = Reaped(requeued=0, failed=0, untold=0)


def test_a_worker_is_live_while_it_beats_and_says_what_it_is(db):
    workers.register(db, "b", "host", 12, ["llm.x", "llm.y"], 4, "http://127.0.0.1:9464", 60.0)
    register(db, "dead", lease_s=-1.0)
    (row,) = workers.live(db)
    assert (row.worker_id, row.hostname, row.pid, row.concurrency) == ("b", "host", 12, 4)
    assert (list(row.queues), row.metrics_url) == (["llm.x", "llm.y"], "http://127.0.0.1:9464")
    assert 50 < row.lease_until - db.now() <= 60


def test_a_heartbeat_renews_a_lease_and_tells_when_it_was_lost(db):
    register(db, lease_s=-1.0)
    assert workers.heartbeat(db, "worker", 60.0)
    assert len(workers.live(db)) == 1
    assert workers.reap(db, 3) == NOTHING
    workers.remove(db, "worker")
    assert not workers.heartbeat(db, "worker", 60.0)


def test_a_worker_can_register_again(db):
    register(db, lease_s=-1.0)
    register(db)
    assert len(workers.live(db)) == 1


def test_a_dead_workers_jobs_go_back_to_the_queue_and_it_cannot_commit_them(db):
    register(db, "dead", lease_s=-1.0)
    register(db, "alive")
    job = claimed(db, "job", "dead")
    claimed(db, "other", "alive")
    assert workers.reap(db, 3) == Reaped(requeued=1, failed=0, untold=0, workers=1)
    row = jobs.get(db, "job")
    assert (row.state, row.crashes, row.worker_id) == (JobState.QUEUED, 1, None)
    assert column(db, "job", "sent_at") is None
    assert jobs.get(db, "other").state is JobState.RUNNING
    assert not jobs.complete(db, job, new_result())
    assert not workers.heartbeat(db, "dead", 60.0)
    assert [row.job_id for row in feed.fill(db, "summarize", 9, 600.0)] == ["job"]
    assert jobs.claim(db, "job", "alive").resumed
    assert workers.reap(db, 3) == NOTHING


def test_how_often_jobs_lost_their_worker_is_told_of_their_batch(db):
    batches.create(db, "batch", "default", "summarize", {}, [new_job("a", batch_id="batch")])
    for crash in range(2):
        register(db, f"dead-{crash}", lease_s=-1.0)
        jobs.claim(db, "a", f"dead-{crash}")
        workers.reap(db, 9)
    status = batches.status(db, "batch")
    assert status.taken_over == 2
    assert status_lines(status)[3].endswith(
        "; up to 2 more calls may have been paid, of workers that died"
    )


def test_a_job_whose_workers_die_too_often_fails_and_its_caller_is_told(db):
    for crash in range(3):
        register(db, f"dead-{crash}", lease_s=-1.0)
        job = claimed(db, "direct", f"dead-{crash}", options={"n": 1})
        claimed(db, "fed", f"dead-{crash}", direct=False)
        reaped = workers.reap(db, 3)
        assert reaped.requeued == (2 if crash < 2 else 0)
    assert reaped.failed == 2
    (told,) = feed.untold(db, "summarize", 9)
    assert (told.job_id, told.options) == ("direct", {"n": 1})
    row = jobs.get(db, "fed")
    assert (row.state, row.error_type, row.crashes) == (JobState.FAILED, "WorkerLost", 3)
    assert row.finished_at is not None
    assert not jobs.fail(db, job, "JobError", "no")


def test_jobs_of_a_worker_without_a_row_go_back_too(db):
    register(db)
    job = claimed(db)
    workers.remove(db, "worker")
    assert workers.reap(db, 3).requeued == 1
    assert not jobs.park(db, job, 0.0, "no", attempts=1, deferred=False)


def test_direct_jobs_that_a_worker_finished_in_its_last_moments_are_told_of(db):
    register(db, "dead", lease_s=60.0)
    for name in ("completed", "failed", "early", "fed", "cancelled"):
        job = claimed(db, name, "dead", direct=name != "fed")
        if name == "failed":
            jobs.fail(db, job, "JobError", "no")
        elif name == "cancelled":
            jobs.cancel(db, name)
        else:
            jobs.complete(db, job, new_result())
    change(db, "early", finished_at=db.now() - 1000)
    with db.write() as connection:
        connection.execute(sa.update(workers_table).values(lease_until=epoch() - 1))
    found = workers.reap(db, 3)
    assert (found.requeued, found.failed, found.untold) == (0, 0, 2)
    told = {row.job_id for row in feed.untold(db, "summarize", 9)}
    assert told >= {"completed", "failed"}
    assert not told & {"early", "fed"}
    assert feed.untold(db, "summarize", 9) == []


def test_of_many_who_reap_one_takes_over(db):
    register(db, "dead", lease_s=-1.0)
    for number in range(20):
        claimed(db, str(number), "dead")
    for number in range(5):
        claimed(db, f"orphan-{number}", "gone")
    reaped = at_once([lambda: workers.reap(db, 3)] * 4)
    assert sum(one.requeued for one in reaped) == 25
    assert {jobs.get(db, str(n)).crashes for n in range(20)} == {1}


def test_a_completion_against_the_reaper_happens_once(db):
    for number in range(15):
        worker_id = f"dead-{number}"
        register(db, worker_id, lease_s=-1.0)
        job = claimed(db, f"job-{number}", worker_id)
        completed, reaped = at_once(
            [
                lambda job=job: jobs.complete(db, job, new_result()),
                lambda: workers.reap(db, 3).requeued == 1,
            ]
        )
        assert completed != reaped


def test_a_claim_while_the_queue_is_fed_again_has_one_winner(db):
    jobs.insert(db, [new_job()], sent=False)
    got = at_once(
        [
            lambda: jobs.claim(db, "job", "a"),
            lambda: jobs.claim(db, "job", "b"),
            lambda: feed.fill(db, "summarize", 5, 600.0),
        ]
    )
    assert len([job for job in got[:2] if job is not None]) == 1
