"""Deliveries against both databases: what one worker has in hand no other one gets, and nothing ends them."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import sqlalchemy as sa
from support.rows import claimed, new_result
from support.stack import eventually

from llmtasks.hooks import Sink
from llmtasks.settings import Delivery, Settings
from llmtasks.store import jobs, outbox, tables
from workers.deliveries import Deliveries

LEASE_S = 30.0


def ended(db, *job_ids):
    for job_id in job_ids:
        assert jobs.complete(db, claimed(db, job_id), new_result(), to_sink=True)


def deliveries(db, function, worker_id="one"):
    return Deliveries(
        db=db,
        sink=Sink("mine:save", function),
        settings=Settings(delivery=Delivery(lease_s=LEASE_S)),
        worker_id=worker_id,
    )


def pass_time(db, seconds):
    """Let so many seconds of every claim pass."""
    with db.write() as connection:
        connection.execute(
            sa.update(tables.outbox).values(claimed_until=tables.outbox.c.claimed_until - seconds)
        )


@contextlib.contextmanager
def stuck_in(db, job_id):
    """Deliveries whose function does not return from this job; they end when the block does."""
    called, go_on, given = threading.Event(), threading.Event(), []

    def save(row):
        given.append(row["job_id"])
        if row["job_id"] == job_id:
            called.set()
            go_on.wait(60)

    running = deliveries(db, save)
    turn = threading.Thread(target=running.turn)
    turn.start()
    assert called.wait(10)
    try:
        yield running, given
    finally:
        go_on.set()
        turn.join(10)


def test_what_was_delivered_before_a_slow_call_is_nobody_elses_while_its_worker_lives(db):
    ended(db, "first", "slow")
    with stuck_in(db, "slow") as (running, given):
        for _ in range(3):
            pass_time(db, 0.9 * LEASE_S)
            running.renew()
        assert given == ["first", "slow"]
        assert outbox.claim(db, "other", 9, LEASE_S) == []
    assert outbox.waiting(db).count == 0


def test_what_a_slow_function_was_not_given_goes_to_another_worker(db):
    ended(db, "slow", "next")
    with stuck_in(db, "slow") as (running, _):
        pass_time(db, 0.9 * LEASE_S)
        running.renew()
        pass_time(db, 0.9 * LEASE_S)
        assert [one.job_id for one in outbox.claim(db, "other", 9, LEASE_S)] == ["next"]


def test_the_claims_of_a_dead_worker_run_out(db):
    ended(db, "first", "slow")
    with stuck_in(db, "slow"):
        pass_time(db, 1.1 * LEASE_S)
        theirs = outbox.claim(db, "other", 9, LEASE_S)
        assert [one.job_id for one in theirs] == ["first", "slow"]
    assert outbox.waiting(db).count == 2  # who lost them does not settle them


def test_whatever_the_function_raises_the_next_row_is_delivered(db):
    given = []

    def save(row):
        given.append(row["job_id"])
        raise {"a": asyncio.CancelledError, "b": SystemExit, "c": KeyboardInterrupt}[row["job_id"]]

    ended(db, "a", "b", "c")
    running = deliveries(db, save)
    running.start()
    try:
        eventually(lambda: outbox.waiting(db).failing == 3, "all were refused", 20)
    finally:
        running.stop(0.0)
    assert given[:3] == ["a", "b", "c"]
