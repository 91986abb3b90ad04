"""A fleet with a backlog: the quota is used, never exceeded, and nobody is refused."""

from __future__ import annotations

from support.load import Setup, measure


def test_a_backlog_of_small_and_large_jobs_uses_the_quota_and_is_not_refused():
    """The provider lets two seconds of its limit pass at once instead of one: a machine that is busy with
    other tests sends calls late, and then those after them in time.
    """
    setup = Setup(seconds=9.0, pace=8.0, workers=2, concurrency=40, burst_s=2.0)
    (found,) = measure(["large"], setup)
    assert found.completed == found.jobs
    assert found.calls_per_job == 1.0
    assert found.refused <= 0.001
    # Two big jobs, each more than a second of the limit, among 70 small ones.
    assert found.peak_s <= 2.0
    assert found.used[0] >= 0.9
