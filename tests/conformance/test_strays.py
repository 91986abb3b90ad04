"""Rows that a worker holds only in the database are given back; no other ones are."""

from __future__ import annotations

import pytest
from support.rows import claimed

from llmtasks.jobs import JobState
from llmtasks.store import jobs
from workers.maintenance import Maintenance


class Executor:
    """Has these jobs at hand, one look after the other."""

    def __init__(self, *looks):
        self._looks = iter(looks)

    @property
    def active(self):
        return frozenset(next(self._looks))


def maintenance(db, executor):
    found = Maintenance.__new__(Maintenance)
    vars(found).update(_db=db, _worker_id="worker", _executor=executor, _strays=set())
    return found


def test_a_claim_whose_answer_was_lost_is_given_back_when_it_is_seen_twice(db):
    claimed(db)
    of_worker = maintenance(db, Executor((), (), ()))
    of_worker._release_strays()
    assert jobs.get(db, "job").state is JobState.RUNNING
    of_worker._release_strays()
    job = jobs.get(db, "job")
    assert (job.state, job.attempts) == (JobState.QUEUED, 0)


@pytest.mark.parametrize("looks", [((), ("job",)), ((), (), ("job",))])
def test_a_job_that_has_come_again_meanwhile_is_not_taken_from_its_slot(db, looks):
    claimed(db)
    of_worker = maintenance(db, Executor(*looks))
    of_worker._release_strays()
    of_worker._release_strays()
    assert jobs.get(db, "job").state is JobState.RUNNING
