"""What callers and foreign messages say of a job is checked, and bounded, before a row holds it."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest

from llmtasks import settings, submission
from llmtasks.errors import InvalidOption
from llmtasks.jobs import REFUSED_OPTION, NewJob, Refused
from llmtasks.planning import plan
from llmtasks.tasks import received

MESSAGE = SimpleNamespace(
    id="job",
    ignore_result=False,
    group=None,
    group_index=None,
    chord=None,
    chain=None,
    callbacks=None,
    errbacks=None,
    root_id=None,
    parent_id=None,
)
TOO_MUCH = {"style": "x" * submission.MAX_OPTIONS_BYTES}


@pytest.fixture(autouse=True)
def configured(monkeypatch):
    """Sets the deadline of jobs that bring none."""

    def default(deadline_s):
        found = settings.Settings(delivery=settings.Delivery(deadline_s=deadline_s))
        monkeypatch.setattr(submission, "current", lambda: found)

    default(None)
    return default


@pytest.mark.parametrize(
    "wrong", ["600", "soon", True, 0, -1, math.nan, math.inf, 31_536_001, 10**400, [600]], ids=str
)
def test_a_wrong_deadline_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(InvalidOption, match=r"^deadline_s must be a number of seconds greater"):
        submission.checked("summarize", {"deadline_s": wrong})


def test_a_job_without_a_deadline_has_that_of_the_settings(configured):
    assert submission.checked("summarize", {})["deadline_s"] is None
    configured(90.0)
    assert submission.checked("summarize", {})["deadline_s"] == 90.0
    assert submission.checked("summarize", {"deadline_s": 5})["deadline_s"] == 5.0
    assert received(MESSAGE, "d", "summarize", {}).deadline_s == 90.0


def test_a_message_carries_the_deadline_there_and_again():
    job = NewJob(
        job_id="job",
        document_id="d",
        task_type="summarize",
        **submission.checked("summarize", {"deadline_s": 600, "priority": 3}),
    )
    kwargs = submission.message_options(job)
    assert (kwargs["deadline_s"], kwargs["priority"]) == (600.0, 3)
    again = received(MESSAGE, "d", "summarize", kwargs)
    assert (again.deadline_s, again.options) == (600.0, job.options)
    assert "tenant" not in kwargs


def test_no_more_options_than_a_row_shall_hold(monkeypatch):
    monkeypatch.setattr(submission, "MAX_OPTIONS_BYTES", 200)
    types = [f"kind {n}" for n in range(30)]
    assert submission.checked("extract", {"types": types[:2]})["options"]["types"] == types[:2]
    with pytest.raises(InvalidOption, match=r"have 3\d\d bytes as JSON; at most 200 are"):
        submission.checked("extract", {"types": types})


@pytest.mark.parametrize(
    ("wrong", "says", "kept"),
    [
        (TOO_MUCH, "at most 65,536 are allowed", {}),
        ({"deadline_s": "soon", "max_words": 9}, "deadline_s must be", {"max_words": 9}),
        ({"max_words": math.nan}, "values, lists and objects of JSON", {}),
    ],
)
def test_a_foreign_message_that_says_what_cannot_be_is_a_job_that_can_only_fail(wrong, says, kept):
    job = received(MESSAGE, "d", "summarize", {"tenant": "acme", **wrong})
    assert isinstance(job, Refused)
    assert says in job.fault
    assert (job.job_id, job.tenant) == ("job", "acme")
    # Also when it is sent again, and without a call.
    assert job.options == {**kept, REFUSED_OPTION: job.fault}
    with pytest.raises(InvalidOption, match=re.escape(job.fault)):
        plan(settings.Settings(), "summarize", job.options)


def test_a_foreign_message_brings_no_more_canvas_than_a_row_shall_hold():
    link = {"task": "other", "args": ["x" * 1_000], "kwargs": {}, "options": {}}
    brought = SimpleNamespace(**{**vars(MESSAGE), "chain": [link] * 1_100})
    job = received(brought, "d", "summarize", {"max_words": 9})
    assert isinstance(job, Refused)
    assert "the chain, chord and callbacks have 1," in job.fault
    assert job.canvas is None
    assert job.options == {"max_words": 9, REFUSED_OPTION: job.fault}
    brought.chain = [link] * 900
    job = received(brought, "d", "summarize", {})
    assert not isinstance(job, Refused)
    assert job.canvas == {"chain": brought.chain}
