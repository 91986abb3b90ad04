"""What is counted, and what is shown as a whole or not at all."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY, generate_latest

from llmtasks import gateway, metrics
from llmtasks.gateway import Answer
from llmtasks.messages import Completion, FinishReason, Usage

ANSWERED = Completion(
    text="words",
    finish_reason=FinishReason.STOP,
    provider="p",
    model="m",
    usage=Usage(input_tokens=1, output_tokens=1),
    latency_s=1.0,
)


@pytest.fixture
def grown():
    """By how much a series has grown since the test began."""
    before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def value(name: str, labels: dict[str, str]) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    for family in REGISTRY.collect():
        for sample in family.samples:
            before[sample.name, tuple(sorted(sample.labels.items()))] = sample.value

    def grown(name: str, **labels: str) -> float:
        return value(name, labels) - before.get((name, tuple(sorted(labels.items()))), 0.0)

    return grown


def test_dollars_are_summed_and_what_is_unknown_is_counted_apart_and_never_as_nothing(grown):
    for cost_usd, is_counted in (
        (0.25, True),
        (0.5, True),
        (0.0, True),
        (None, True),
        (None, False),
        (None, False),
    ):
        metrics.count_cost("openai", "gpt", cost_usd, is_counted=is_counted)
    of = {"provider": "openai", "model": "gpt"}
    assert grown("llm_cost_usd_total", **of) == 0.75
    assert grown("llm_unpriced_calls_total", **of, reason="price") == 1
    assert grown("llm_unpriced_calls_total", **of, reason="usage") == 2


@pytest.mark.parametrize(
    ("cached", "followed", "result", "role"),
    [
        (False, False, "miss", "led"),
        (False, True, "miss", "led"),  # whom it followed gave up, and it took the lead
        (True, True, "hit", "followed"),
        (True, False, "hit", None),
    ],
)
def test_who_waited_for_the_answer_of_another_is_told_from_who_found_it(
    grown, cached, followed, result, role
):
    gateway._measure_answer(Answer(ANSWERED, "words", cached), followed=followed)
    assert grown("llm_cache_hits_total", result=result) == 1
    for one in ("led", "followed"):
        assert grown("llm_single_flight_total", role=one) == (one == role)


def test_a_picture_is_shown_as_a_whole_and_what_is_gone_is_absent():
    picture = metrics.Picture(
        {"llm_test_jobs": (("state",), "Jobs."), "llm_test_workers": ((), "Workers.")}
    )
    try:
        assert b"llm_test" not in generate_latest()
        picture.show(
            {"llm_test_jobs": {("queued",): 3, ("running",): 1}, "llm_test_workers": {(): 2}}
        )
        shown = generate_latest().decode()
        assert 'llm_test_jobs{state="queued"} 3.0\nllm_test_jobs{state="running"} 1.0' in shown
        assert "llm_test_workers 2.0" in shown
        picture.show({"llm_test_jobs": {("running",): 1}})
        assert REGISTRY.get_sample_value("llm_test_jobs", {"state": "queued"}) is None
        assert b"llm_test_workers" not in generate_latest()
        picture.hide()
        assert b"llm_test" not in generate_latest()
    finally:
        REGISTRY.unregister(picture)


def test_quota_is_counted_by_dimension(grown):
    metrics.count_quota("p", {"requests": 1, "tokens": 30.0})
    metrics.count_quota("p", {"requests": 1, "tokens": 12.0})
    assert grown("llm_provider_quota_used_total", provider="p", dimension="requests") == 2
    assert grown("llm_provider_quota_used_total", provider="p", dimension="tokens") == 42


def test_a_queue_that_cannot_be_seen_is_absent():
    metrics.queue_messages.labels("llm.some").set(3)
    metrics.hide_queue("llm.some")
    metrics.hide_queue("llm.some")
    assert REGISTRY.get_sample_value("llm_queue_messages", {"queue": "llm.some"}) is None
