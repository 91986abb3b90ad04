"""The one decision after a failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks import errors
from llmtasks.retry import Fail, Postpone, Retry, backoff, decide
from llmtasks.settings import Retry as Policy

POLICY = Policy(max_attempts=4, base_s=1.0, max_s=20.0, default_retry_after_s=60.0)


def test_a_rate_limit_is_obeyed_and_costs_no_attempt():
    error = errors.RateLimitError("slow down", retry_after=37.5)
    assert decide(error, 99, POLICY, 0.5) == Postpone(37.5)


def test_a_rate_limit_without_a_hint_waits_the_configured_time():
    assert decide(errors.RateLimitError("slow down"), 1, POLICY, 0.5) == Postpone(60.0)


def test_retry_after_zero_is_no_tight_loop():
    decision = decide(errors.RateLimitError("", retry_after=0.0), 1, POLICY, 0.0)
    assert isinstance(decision, Postpone)
    assert decision.delay > 0


@pytest.mark.parametrize(
    "error",
    [
        errors.QuotaExhausted(""),
        errors.AuthenticationFailed(""),
        errors.AdmissionUnavailable(""),
    ],
)
def test_not_now_is_not_failure(error):
    assert isinstance(decide(error, 99, POLICY, 0.5), Postpone)


@pytest.mark.parametrize(
    "error",
    [
        errors.RequestRejected(""),
        errors.ContextWindowExceeded(""),
        errors.OutputTruncated(""),
        errors.OutputRefused(""),
        errors.OutputInvalid(""),
        errors.DocumentTooLarge(""),
        errors.ConfigurationError(""),
    ],
)
def test_what_no_repetition_mends_fails_at_once(error):
    assert decide(error, 1, POLICY, 0.5) == Fail(error)


def test_a_document_store_that_fails_is_asked_again_until_the_attempts_are_used_up():
    error = errors.DocumentSourceFailed("store raised OSError")
    assert decide(error, 3, POLICY, 0.5) == Retry(3.0)
    assert decide(error, 4, POLICY, 0.5) == Fail(error)


@given(attempt=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_backoff_is_positive_bounded_and_ends(attempt, jitter):
    assert 0 < backoff(attempt, POLICY, jitter) <= POLICY.max_s
    decision = decide(errors.ProviderUnavailable("503"), attempt, POLICY, jitter)
    assert isinstance(decision, Fail if attempt >= POLICY.max_attempts else Retry)


@given(
    attempt=st.integers(1, 4),
    jitters=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_no_wait_is_shorter_than_the_one_before_it(attempt, jitters):
    """So a short blip of a provider, also with bad luck, does not spend all attempts."""
    first, second = jitters
    assert backoff(attempt, POLICY, first) <= backoff(attempt + 1, POLICY, second)


def test_the_servers_word_outweighs_our_backoff():
    error = errors.ProviderUnavailable("503", retry_after=45.0)
    assert decide(error, 1, POLICY, 0.5) == Retry(45.0)


def test_giving_up_tells_the_last_failure():
    decision = decide(errors.ProviderTimeout("sim: no answer"), 4, POLICY, 0.5)
    assert isinstance(decision, Fail)
    assert isinstance(decision.error, errors.AttemptsExhausted)
    assert "ProviderTimeout: sim: no answer" in str(decision.error)
