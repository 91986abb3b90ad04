"""The outbox in both databases: every ended job is delivered, by one worker at a time, at least once."""

from __future__ import annotations

import itertools

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import at_once, change, claimed, column, new_result, register

from llmtasks.jobs import JobState
from llmtasks.store import jobs, outbox, results, tables, workers
from llmtasks.store.engine import epoch
from llmtasks.store.outbox import Waiting


def ended(db, job_id="job", **values):
    """A job that was completed with a sink configured."""
    job = claimed(db, job_id, **values)
    assert jobs.complete(db, job, new_result(), to_sink=True)
    return job


def failed(db, job_id="job"):
    job = claimed(db, job_id)
    assert jobs.fail(db, job, "OutputInvalid", "no", to_sink=True)


def claim(db, worker_id="worker", limit=9, lease_s=30.0):
    return outbox.claim(db, worker_id, limit, lease_s)


def names(deliveries):
    return [one.job_id for one in deliveries]


def pass_time(db, seconds):
    """Let so many seconds pass for the outbox. What is claimed was due, and keeps its end's time."""
    rows = tables.outbox
    with db.write() as connection:
        connection.execute(
            sa.update(rows)
            .where(rows.c.claimed_by.is_(None))
            .values(due_at=rows.c.due_at - seconds)
        )
        connection.execute(sa.update(rows).values(claimed_until=rows.c.claimed_until - seconds))


def test_a_job_that_ends_is_delivered_and_then_no_more(db):
    ended(db, "a")
    failed(db, "b")
    mine = claim(db)
    assert names(mine) == ["a", "b"]
    assert outbox.waiting(db).count == 2
    outbox.settle(db, "worker", delivered=mine)
    assert outbox.waiting(db) == Waiting(count=0, oldest_s=None, failing=0)
    assert claim(db) == []


def test_without_a_sink_nothing_is_written(db):
    assert jobs.complete(db, claimed(db, "a"), new_result())
    assert jobs.fail(db, claimed(db, "b"), "JobError", "no")
    assert outbox.waiting(db).count == 0


def test_what_was_not_committed_is_not_delivered(db):
    job = claimed(db)
    change(db, "job", fence=9)
    assert not jobs.complete(db, job, new_result(), to_sink=True)
    assert not jobs.fail(db, job, "JobError", "no", to_sink=True)
    assert outbox.waiting(db).count == 0


def test_a_commit_that_is_repeated_is_delivered_once(db):
    job = ended(db)
    outbox.settle(db, "worker", delivered=claim(db))
    assert jobs.complete(db, job, new_result(), to_sink=True)
    assert claim(db) == []


def test_a_cancelled_job_is_not_delivered(db):
    claimed(db)
    assert jobs.cancel(db, "job") == 1
    assert outbox.waiting(db).count == 0


@pytest.mark.parametrize("to_sink", [True, False])
def test_a_job_that_the_reaper_fails_is_delivered_too(db, to_sink):
    register(db, "dead", lease_s=-1.0)
    claimed(db, "lost", "dead")
    assert workers.reap(db, 1, to_sink=to_sink).failed == 1
    assert names(claim(db)) == (["lost"] if to_sink else [])


def test_one_that_goes_back_to_the_queue_is_not(db):
    register(db, "dead", lease_s=-1.0)
    claimed(db, "again", "dead")
    assert workers.reap(db, 2, to_sink=True).requeued == 1
    assert claim(db) == []


def test_the_order_is_that_of_ending(db):
    for name in "cabd":
        ended(db, name)
    assert names(claim(db, limit=2)) == ["c", "a"]
    assert names(claim(db, limit=9)) == ["b", "d"]


def test_no_two_workers_get_the_same_row(db):
    for number in range(40):
        ended(db, f"job-{number}")
    shares = at_once([lambda w=w: names(claim(db, f"worker-{w}", 15)) for w in range(4)])
    got = [name for share in shares for name in share]
    assert len(got) == len(set(got))
    rest = names(claim(db, "last", 40))
    assert sorted([*got, *rest]) == sorted(f"job-{n}" for n in range(40))


def test_the_rows_of_a_dead_worker_come_back_when_its_claim_runs_out(db):
    ended(db)
    assert names(claim(db, "dead", lease_s=30.0)) == ["job"]
    pass_time(db, 29.0)
    assert claim(db, "other") == []
    pass_time(db, 2.0)
    assert names(claim(db, "other")) == ["job"]


def test_a_renewed_claim_does_not_run_out(db):
    ended(db)
    claim(db, "slow", lease_s=10.0)
    pass_time(db, 9.0)
    outbox.renew(db, "slow", ["job"], 10.0)
    pass_time(db, 9.0)
    assert claim(db, "other") == []
    outbox.renew(db, "somebody else", ["job"], 1000.0)
    pass_time(db, 2.0)
    assert names(claim(db, "other")) == ["job"]


def test_who_lost_its_claim_settles_nothing(db):
    ended(db)
    slow = claim(db, "slow", lease_s=1.0)
    pass_time(db, 2.0)
    fast = claim(db, "fast")
    outbox.settle(db, "slow", delivered=slow)
    assert claim(db, "third") == []
    outbox.settle(db, "fast", failed=[(fast[0], 0.0)])
    assert [(one.job_id, one.tries) for one in claim(db, "third")] == [("job", 1)]


def test_a_failure_waits_and_others_go_on(db):
    ended(db, "bad")
    ended(db, "good")
    (bad,) = claim(db, limit=1)
    outbox.settle(db, "worker", failed=[(bad, 60.0)])
    good = claim(db)
    assert names(good) == ["good"]
    waiting = outbox.waiting(db)
    assert (waiting.count, waiting.failing) == (2, 1)
    outbox.settle(db, "worker", delivered=good)
    pass_time(db, 61.0)
    assert [(one.job_id, one.tries) for one in claim(db)] == [("bad", 1)]


def test_untouched_rows_go_back_at_once_and_keep_their_place(db):
    for name in "abc":
        ended(db, name)
    a, *rest = claim(db)
    outbox.settle(db, "worker", delivered=[a], untouched=rest)
    assert names(claim(db, "other")) == ["b", "c"]


def test_how_long_the_oldest_waits_is_told(db):
    ended(db, "a")
    ended(db, "b")
    change(db, "a", finished_at=column(db, "b", "finished_at") - 500)
    assert 500 <= outbox.waiting(db).oldest_s < 560


@pytest.mark.parametrize("outcome", ["delivered", "failed", "untouched"])
def test_a_job_that_ends_again_during_its_delivery_is_delivered_again(db, outcome):
    failed(db)
    (first,) = claim(db)
    assert jobs.retry(db, "job") == 1
    again = jobs.claim(db, "job", "worker")
    assert jobs.complete(db, again, new_result(), to_sink=True)
    assert claim(db, "other") == []  # not while the first delivery is on its way
    settled = [(first, 300.0)] if outcome == "failed" else [first]
    outbox.settle(db, "worker", **{outcome: settled})
    (second,) = claim(db, "other")
    assert second.tries == 0
    assert results.of_jobs(db, ["job"])["job"].state is JobState.COMPLETED
    outbox.settle(db, "other", delivered=[second])
    assert outbox.waiting(db).count == 0


def test_the_rows_say_whose_and_what(db):
    ended(db, "a", tenant="t", batch_id="group")
    claimed(db, "b")
    rows = results.of_jobs(db, ["a", "b", "nobody"])
    assert rows.keys() == {"a", "b"}
    assert (rows["a"].tenant, rows["a"].batch_id) == ("t", "group")
    assert rows["a"].output == {"summary": "short"}
    assert (rows["b"].state, rows["b"].output) == (JobState.RUNNING, None)


#: Names that no other example of the property has used: they share a database.
NUMBERS = itertools.count()
LEASE_S = 30.0


class Fleet:
    """Two workers at an outbox, and what is to be true of it."""

    def __init__(self, db):
        self.db = db
        self.ends = {}  # how often each job ended
        self.told = {}  # of these, the last end that was delivered
        self.hands = {"one": [], "two": []}  # rows, each with the end it stands for
        self.claims = {}  # those that have not run out: whose, and for how many seconds more

    def end(self, _worker):
        name = f"job-{next(NUMBERS)}"
        failed(self.db, name)
        self.ends[name] = 1

    def end_again(self, _worker):
        for name in [*self.ends][-2:]:
            assert jobs.retry(self.db, name) == 1
            again = jobs.claim(self.db, name, "worker")
            assert jobs.fail(self.db, again, "OutputInvalid", "no", to_sink=True)
            self.ends[name] += 1

    def claim(self, worker):
        self._settle(worker, untouched=[one for one, _ in self.hands[worker]])
        got = claim(self.db, worker, 3, LEASE_S)
        assert not self.claims.keys() & set(names(got)), "a row that is in somebody's hands"
        self.claims |= dict.fromkeys(names(got), (worker, LEASE_S))
        self.hands[worker] = [(one, self.ends[one.job_id]) for one in got]

    def renew(self, worker):
        job_ids = [one.job_id for one, _ in self.hands[worker]]
        outbox.renew(self.db, worker, job_ids, LEASE_S)
        rows = self._rows()
        ours = [name for name in job_ids if name in rows and rows[name][0] == worker]
        self.claims |= dict.fromkeys(ours, (worker, LEASE_S))

    def deliver(self, worker):
        for one, end in self.hands[worker]:
            self.told[one.job_id] = max(end, self.told.get(one.job_id, 0))
        self._settle(worker, delivered=[one for one, _ in self.hands[worker]])

    def fail(self, worker):
        self._settle(worker, failed=[(one, 5.0) for one, _ in self.hands[worker]])

    def die(self, worker):
        self.hands[worker] = []

    def wait(self, _worker, seconds=0.6 * LEASE_S):
        pass_time(self.db, seconds)
        later = {name: (whose, left - seconds) for name, (whose, left) in self.claims.items()}
        self.claims = {name: claim for name, claim in later.items() if claim[1] > 0}

    def stall(self, worker):
        self.wait(worker, 3 * LEASE_S)

    def _settle(self, worker, **outcome):
        outbox.settle(self.db, worker, **outcome)
        for one, _ in self.hands[worker]:
            if self.claims.get(one.job_id, (None,))[0] == worker:
                del self.claims[one.job_id]
        self.hands[worker] = []

    def check(self):
        """What is not delivered as it ended last is there, and who has it in hand still has it."""
        rows = self._rows()
        owed = {name for name, end in self.ends.items() if self.told.get(name, 0) < end}
        assert owed <= rows.keys()
        assert {name: rows.get(name) for name in self.claims} == {
            name: (whose, True) for name, (whose, _) in self.claims.items()
        }

    def _rows(self):
        """Of each row: who claimed it last, and whether that claim runs."""
        rows = tables.outbox.c
        runs = sa.func.coalesce(rows.claimed_until > epoch(), sa.false())
        with self.db.read() as connection:
            found = connection.execute(sa.select(rows.job_id, rows.claimed_by, runs)).all()
        return {name: (whose, bool(runs)) for name, whose, runs in found}


STEPS = st.sampled_from(
    ["end", "end_again", "claim", "renew", "deliver", "fail", "die", "wait", "stall"]
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=st.lists(st.tuples(STEPS, st.sampled_from(["one", "two"])), min_size=15, max_size=30))
def test_whatever_happens_between_the_last_end_of_each_job_is_delivered(db, steps):
    """Deliver, refuse, renew, die and stall in any order: no row is in two hands whose claims run, and in
    the end each job was delivered as it ended last.
    """
    with db.write() as connection:
        connection.execute(sa.delete(tables.outbox))
    fleet = Fleet(db)
    for step, worker in steps:
        getattr(fleet, step)(worker)
        fleet.check()
    fleet.stall("one")
    for one in claim(db, "last", 100):
        fleet.told[one.job_id] = fleet.ends[one.job_id]
    assert fleet.told == fleet.ends
