"""Feeding in both databases: order, shares, one feeder at a time, nothing forgotten."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from support.rows import at_once, change, claimed, column, new_job, new_result, register

from llmtasks.jobs import JobState
from llmtasks.store import batches, feed, jobs
from llmtasks.store.feed import Lane, plan


def submit(db, *names, **values):
    rows = [new_job(name, batch_id="batch", **{"direct": False, **values}) for name in names]
    batches.create(db, "batch", "default", "summarize", {}, rows)


def ids(rows):
    return [row.job_id for row in rows]


def lane(priority=0, tenant="default", oldest_at=0.0):
    return Lane(priority=priority, tenant=tenant, oldest_at=oldest_at)


# --- the plan


def test_the_higher_priority_gets_all_of_the_room():
    assert plan([lane(0), lane(3)], 5, 0.0, 600.0) == [(lane(3), 5)]


def test_tenants_of_a_level_share_equally():
    lanes = [lane(tenant="a"), lane(tenant="b"), lane(tenant="c")]
    assert sorted(count for _, count in plan(lanes, 9, 0.0, 600.0)) == [3, 3, 3]
    assert sorted(count for _, count in plan(lanes, 10, 0.0, 600.0)) == [3, 3, 4]


def test_too_little_room_for_all_tenants_goes_to_another_one_each_time():
    lanes = [lane(tenant="a"), lane(tenant="b"), lane(tenant="c")]
    served = Counter(plan(lanes, 1, now / 1000, 600.0)[0][0].tenant for now in range(300))
    assert served == {"a": 100, "b": 100, "c": 100}


def test_waiting_raises_a_lane_level_by_level_but_not_above_the_highest():
    old, urgent = lane(0, "old", oldest_at=0.0), lane(2, "urgent", oldest_at=1199.0)
    assert plan([old, urgent], 4, 1199.0, 600.0) == [(urgent, 4)]
    assert dict(plan([old, urgent], 4, 1200.0, 600.0)) == {old: 2, urgent: 2}
    top = lane(9, "top", oldest_at=1e6)
    assert dict(plan([old, top], 4, 1e6, 600.0)) == {old: 2, top: 2}


def test_a_tenant_with_two_lanes_of_a_level_has_one_share():
    lanes = [lane(0, "a", 0.0), lane(1, "a", 600.0), lane(1, "b", 600.0)]
    assert dict(plan(lanes, 4, 600.0, 600.0)) == {lanes[0]: 2, lanes[2]: 2}


@pytest.mark.parametrize("room", [0, -5])
def test_no_room_and_no_lanes_make_an_empty_plan(room):
    assert plan([lane()], room, 0.0, 600.0) == []
    assert plan([], 5, 0.0, 600.0) == []


# --- lanes and taking


def test_the_lanes_are_those_with_rows_to_send(db):
    submit(db, "a", "b")
    submit(db, "c", priority=5)
    submit(db, "d", tenant="acme")
    submit(db, "e", task_type="extract")
    jobs.insert(db, [new_job("direct", tenant="direct")], sent=True)
    claimed(db, "running", tenant="running")
    found = feed.lanes(db, "summarize")
    assert [(one.priority, one.tenant) for one in found] == [
        (5, "default"),
        (0, "acme"),
        (0, "default"),
    ]
    assert abs(found[2].oldest_at - column(db, "a", "created_at")) < 1e-6
    assert feed.lanes(db, "translate") == []


def test_rows_are_taken_in_arrival_order_and_marked_sent(db):
    submit(db, *"edcba", options={"words": 5}, priority=2, fresh=True)
    (only,) = feed.lanes(db, "summarize")
    first = feed.take(db, "summarize", only, 2)
    assert ids(first) == ["e", "d"]
    assert (first[0].options, first[0].priority, first[0].fresh) == ({"words": 5}, 2, True)
    assert (first[0].direct, first[0].batch_id) == (False, "batch")
    assert feed.depth(db, "summarize") == 2
    assert ids(feed.take(db, "summarize", only, 10)) == ["c", "b", "a"]
    assert feed.lanes(db, "summarize") == []
    assert feed.take(db, "summarize", only, 10) == []


def test_two_feeders_never_take_the_same_row_and_miss_none(db):
    names = [str(n) for n in range(200)]
    submit(db, *names)
    (only,) = feed.lanes(db, "summarize")

    def take_all():
        taken = []
        while rows := feed.take(db, "summarize", only, 15):
            taken.extend(ids(rows))
        return taken

    taken = list(chain(*at_once([take_all] * 3)))
    taken.extend(take_all())
    assert sorted(taken, key=int) == names


def test_filling_gives_what_a_small_tenant_leaves_to_the_others(db):
    submit(db, *[f"big-{n}" for n in range(20)], tenant="big")
    submit(db, "small-0", tenant="small")
    submit(db, "high-0", tenant="big", priority=9)
    taken = feed.fill(db, "summarize", 11, 600.0)
    assert taken[0].job_id == "high-0"
    assert Counter(row.tenant for row in taken) == {"big": 10, "small": 1}
    assert len(feed.fill(db, "summarize", 100, 600.0)) == 11
    assert feed.fill(db, "summarize", 100, 600.0) == []
    assert feed.fill(db, "summarize", -3, 600.0) == []


def test_one_feeder_per_interval_wins(db):
    assert sum(at_once([lambda: feed.turn(db, "summarize", 60.0)] * 6)) == 1
    assert not feed.turn(db, "summarize", 60.0)
    assert feed.turn(db, "extract", 60.0)
    assert feed.turn(db, "summarize", 0.0)


# --- waking


def test_what_is_due_is_queued_for_the_feeder_also_direct_jobs(db):
    for name, direct in (("due", True), ("later", True), ("fed", False)):
        job = claimed(db, name, direct=direct)
        jobs.park(db, job, 1000.0, "why", attempts=0, deferred=True)
    for name in ("due", "fed"):
        change(db, name, not_before=db.now() - 1)
    assert feed.wake_due(db) == 2
    row = jobs.get(db, "due")
    assert (row.state, row.not_before, row.reason) == (JobState.QUEUED, None, None)
    assert jobs.get(db, "later").state is JobState.WAITING
    assert set(ids(feed.fill(db, "summarize", 10, 600.0))) == {"due", "fed"}


def test_no_more_than_the_limit_are_woken_the_longest_due_first(db):
    for number, name in enumerate("abc"):
        jobs.park(db, claimed(db, name), 0.0, "why", attempts=0, deferred=True)
        change(db, name, not_before=db.now() - number - 1)
    assert feed.wake_due(db, limit=2) == 2
    assert [jobs.get(db, name).state.value for name in "abc"] == ["waiting", "queued", "queued"]


def test_a_row_is_woken_once_by_many(db):
    for number in range(60):
        job = claimed(db, str(number))
        jobs.park(db, job, 0.0, "why", attempts=0, deferred=True)
    woken = at_once([lambda: feed.wake_due(db, 1000)] * 4)
    assert sum(woken) + feed.wake_due(db) == 60


# --- the rate and the forgotten


def test_the_rate_counts_work_that_ended_lately_not_what_was_cancelled(db):
    a, b, c, _ = (claimed(db, name) for name in "abcd")
    jobs.complete(db, a, new_result())
    jobs.fail(db, b, "JobError", "no")
    jobs.complete(db, c, new_result())
    change(db, "c", finished_at=db.now() - 100)
    jobs.cancel(db, "d")
    assert feed.finished_rate(db, "summarize", 50.0) == 2 / 50
    assert feed.finished_rate(db, "extract", 50.0) == 0.0


def test_with_an_empty_queue_what_was_sent_long_ago_is_sent_again_once(db):
    submit(db, "fed")
    feed.fill(db, "summarize", 1, 600.0)
    jobs.insert(db, [new_job("direct"), new_job("fresh")], sent=True)
    claimed(db, "running")
    submit(db, "unsent")
    for name in ("fed", "direct", "running"):
        change(db, name, sent_at=db.now() - 20)
    found = feed.forgotten(db, "summarize", 10.0, queue_empty=True, limit=10)
    assert set(ids(found)) == {"fed", "direct"}
    assert feed.forgotten(db, "summarize", 10.0, queue_empty=True, limit=10) == []


def test_the_forgotten_are_limited_and_the_longest_sent_come_first(db):
    for number, name in enumerate("abc"):
        jobs.insert(db, [new_job(name)], sent=True)
        change(db, name, sent_at=db.now() - 100 - number)
    found = feed.forgotten(db, "summarize", 10.0, queue_empty=True, limit=2)
    assert sorted(ids(found)) == ["b", "c"]


@pytest.mark.parametrize("fate", ["running", "completed", "refused"])
def test_a_row_that_a_worker_wrote_for_a_foreign_message_has_overtaken_nobody(db, fate):
    register(db)
    jobs.insert(db, [new_job("waits")], sent=True)
    change(db, "waits", sent_at=db.now() - 200)
    foreign = new_job("foreign")
    if fate == "refused":
        jobs.insert_failed(db, foreign, "worker", "InvalidOption", "no")
    else:
        jobs.insert_received(db, foreign)
        held = jobs.claim(db, "foreign", "worker")
        assert fate == "running" or jobs.complete(db, held, new_result())
    assert feed.forgotten(db, "summarize", 10.0, queue_empty=False, limit=10) == []


@pytest.mark.parametrize("overtaker", ["running", "completed", "failed"])
def test_in_a_queue_that_is_not_empty_only_the_overtaken_are_sent_again(db, overtaker):
    now = db.now()
    register(db)
    jobs.insert(db, [new_job("lost"), new_job("behind"), new_job("young")], sent=True)
    jobs.insert(db, [new_job("fed", direct=False), new_job("else", task_type="x")], sent=True)
    for name, age in (("lost", 200), ("behind", 105), ("young", 50), ("fed", 200), ("else", 200)):
        change(db, name, sent_at=now - age)
    assert feed.forgotten(db, "summarize", 10.0, queue_empty=False, limit=10) == []

    job = claimed(db, "overtaker")
    change(db, "overtaker", sent_at=now - 100)
    if overtaker == "completed":
        jobs.complete(db, job, new_result())
    elif overtaker == "failed":
        jobs.fail(db, job, "JobError", "no")
    found = feed.forgotten(db, "summarize", 10.0, queue_empty=False, limit=10)
    assert ids(found) == ["lost"]
    assert feed.forgotten(db, "summarize", 10.0, queue_empty=False, limit=10) == []
