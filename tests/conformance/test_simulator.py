"""The simulated provider as the real SDKs see it."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from email.utils import parsedate_to_datetime

import anthropic
import httpx2
import openai
import pydantic
import pytest
from support.simulated import simulated

SYSTEM = "Summarize the document."
PROMPT = "<document>\nAlice met Robert in Lisbon. They drank coffee.\n</document>"
SUMMARY = "Alice met Robert in Lisbon. They drank coffee."
SECONDS = 5.0


class Person(pydantic.BaseModel):
    name: str
    age: int | None


class People(pydantic.BaseModel):
    people: list[Person]
    summary: str


@pytest.fixture(scope="module")
def running():
    with simulated(seed=1) as provider:
        yield provider


@pytest.fixture
def provider(running):
    running.reset()
    return running


@pytest.fixture
def gpt(provider):
    with openai.OpenAI(
        base_url=provider.openai_url, api_key="key-o", max_retries=0, timeout=SECONDS
    ) as client:
        yield client


@pytest.fixture
def claude(provider):
    with anthropic.Anthropic(
        base_url=provider.anthropic_url, api_key="key-a", max_retries=0, timeout=SECONDS
    ) as client:
        yield client


def ask_gpt(client, prompt=PROMPT, **given):
    return client.chat.completions.create(
        **{
            "model": "sim-small",
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": prompt},
            ],
            "max_tokens": 100,
            **given,
        }
    )


def ask_claude(client, prompt=PROMPT, **given):
    return client.messages.create(
        **{
            "model": "sim-small",
            "system": SYSTEM,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 100,
            **given,
        }
    )


def stream_claude(client, **given):
    with client.messages.stream(
        model="sim-small",
        system=SYSTEM,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=100,
        **given,
    ) as stream:
        events = [event.type for event in stream]
        return events, stream.get_final_message()


def until(condition, seconds=SECONDS):
    """Waits for what the server notices a moment later, e.g. that a client has left."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        threading.Event().wait(0.01)


# -- answers --------------------------------------------------------------------------------------


def test_openai_answers_and_counts_tokens(provider, gpt):
    answer = ask_gpt(gpt)
    assert answer.choices[0].message.content.startswith(SUMMARY)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == sum(math.ceil(len(t) / 4) + 4 for t in (SYSTEM, PROMPT))
    assert answer.usage.completion_tokens == math.ceil(len(answer.choices[0].message.content) / 4)


def test_the_path_without_v1_is_the_same(provider):
    with openai.OpenAI(base_url=provider.url, api_key="k", max_retries=0) as client:
        assert ask_gpt(client).choices[0].message.content.startswith(SUMMARY)


def test_anthropic_answers_and_counts_the_same(provider, claude):
    answer = ask_claude(claude)
    assert answer.content[0].text.startswith(SUMMARY)
    assert answer.stop_reason == "end_turn"
    counted = claude.messages.count_tokens(
        model="sim-small", system=SYSTEM, messages=[{"role": "user", "content": PROMPT}]
    )
    assert counted.input_tokens == answer.usage.input_tokens


def test_an_openai_stream_says_what_the_whole_answer_says(provider, gpt):
    whole = ask_gpt(gpt)
    chunks = list(ask_gpt(gpt, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert ask_gpt(gpt, stream=True).response.read().endswith(b"data: [DONE]\n\n")


def test_an_anthropic_stream_has_every_event_in_order(provider, claude):
    whole = ask_claude(claude)
    with claude.messages.with_streaming_response.create(
        model="sim-small",
        system=SYSTEM,
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=100,
        stream=True,
    ) as response:
        names = [line[7:] for line in response.iter_lines() if line.startswith("event: ")]
    assert [name for name, _ in itertools.groupby(names) if name != "ping"] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    _, message = stream_claude(claude)
    assert message.content[0].text == whole.content[0].text
    assert (message.stop_reason, message.usage.output_tokens) == (
        "end_turn",
        whole.usage.output_tokens,
    )


def test_openai_structured_output_parses(provider, gpt):
    parsed = gpt.chat.completions.parse(
        model="m", messages=[{"role": "user", "content": PROMPT}], response_format=People
    )
    found = parsed.choices[0].message.parsed
    assert found.people[0].name in PROMPT
    assert found.summary == SUMMARY


def test_anthropic_structured_output_and_tools_parse(provider, claude):
    messages = [{"role": "user", "content": PROMPT}]
    parsed = claude.messages.parse(
        model="m", max_tokens=200, messages=messages, output_format=People
    )
    assert parsed.parsed_output.people[0].name in PROMPT
    tool = {"name": "save", "input_schema": People.model_json_schema()}
    forced = {"tools": [tool], "tool_choice": {"type": "tool", "name": "save"}}
    answer = ask_claude(claude, max_tokens=200, **forced)
    assert answer.stop_reason == "tool_use"
    assert People.model_validate(answer.content[0].input).summary == SUMMARY
    _, streamed = stream_claude(claude, **forced)
    assert streamed.content[0].input == answer.content[0].input


def test_an_answer_never_exceeds_max_tokens(provider, gpt, claude):
    short = ask_gpt(gpt, max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage.completion_tokens == 3
    assert short.choices[0].message.content == SUMMARY[:12]
    assert ask_claude(claude, max_tokens=3).stop_reason == "max_tokens"


def test_models_and_health_are_there(provider, gpt, claude):
    assert [model.id for model in gpt.models.list()] == ["sim-small", "sim-large"]
    assert [model.id for model in claude.models.list()] == ["sim-small", "sim-large"]
    assert httpx2.get(f"{provider.url}/health").status_code == 200


def test_a_request_of_no_protocol_is_refused_as_the_provider_would(provider, gpt, claude):
    with pytest.raises(openai.BadRequestError) as caught:
        ask_gpt(gpt, messages=[])
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(anthropic.BadRequestError):
        ask_claude(claude, max_tokens=0)
    assert [line["status"] for line in provider.log()] == [400, 400]


# -- faults ---------------------------------------------------------------------------------------

ERRORS = [
    # kind, what the OpenAI SDK raises, what the Anthropic SDK raises
    ("429", openai.RateLimitError, anthropic.RateLimitError),
    ("401", openai.AuthenticationError, anthropic.AuthenticationError),
    ("400", openai.BadRequestError, anthropic.BadRequestError),
    ("context_window", openai.BadRequestError, anthropic.BadRequestError),
    ("insufficient_quota", openai.RateLimitError, anthropic.PaymentRequiredError),
    ("500", openai.InternalServerError, anthropic.InternalServerError),
    ("503", openai.InternalServerError, anthropic.ServiceUnavailableError),
    ("529", openai.InternalServerError, anthropic.OverloadedError),
    ("reset", openai.APIConnectionError, anthropic.APIConnectionError),
    ("bad_json", ValueError, ValueError),
    ("cut_json", (openai.APIError, httpx2.HTTPError), (anthropic.APIError, httpx2.HTTPError)),
]


@pytest.mark.parametrize("fault", ERRORS, ids=lambda fault: fault[0])
def test_each_fault_is_the_sdks_own_error_and_the_next_request_is_well(
    provider, gpt, claude, fault
):
    kind, for_openai, for_anthropic = fault
    for client, ask, error in ((gpt, ask_gpt, for_openai), (claude, ask_claude, for_anthropic)):
        provider.faults(kind=kind, next=1)
        with pytest.raises(error):
            ask(client)
        ask(client)
    assert provider.stats()["faults"] == {kind: 2}
    assert provider.stats()["answered"] == 2
    assert [line["fault"] for line in provider.log()] == [kind, "", kind, ""]


def test_errors_carry_the_providers_own_types(provider, gpt, claude):
    provider.faults({"kind": "insufficient_quota"})
    with pytest.raises(openai.RateLimitError) as caught:
        ask_gpt(gpt)
    assert caught.value.code == "insufficient_quota"
    with pytest.raises(anthropic.APIStatusError) as told:
        ask_claude(claude)
    assert told.value.body["error"]["type"] == "billing_error"
    assert told.value.request_id == provider.log()[-1]["request_id"]
    provider.no_faults()
    provider.faults(kind=529, api="anthropic")
    with pytest.raises(anthropic.OverloadedError) as overloaded:
        ask_claude(claude)
    assert overloaded.value.body["error"]["type"] == "overloaded_error"
    ask_gpt(gpt)


@pytest.mark.parametrize(
    ("form", "header", "value"),
    [
        ("seconds", "retry-after", "3"),
        ("fraction", "retry-after", "2.500"),
        ("ms", "retry-after-ms", "2500"),
        ("absurd", "retry-after", "999999999"),
        ("none", "retry-after", None),
    ],
)
def test_retry_after_comes_in_every_form(provider, gpt, form, header, value):
    provider.faults(kind="429", next=1, retry_after=2.5, retry_after_form=form)
    with pytest.raises(openai.RateLimitError) as caught:
        ask_gpt(gpt)
    headers = caught.value.response.headers
    assert headers.get(header) == value
    assert len({"retry-after", "retry-after-ms"} & set(headers)) == (value is not None)


def test_retry_after_can_be_a_date(provider, claude):
    provider.faults(kind="529", next=1, retry_after=60, retry_after_form="date")
    with pytest.raises(anthropic.OverloadedError) as caught:
        ask_claude(claude)
    when = parsedate_to_datetime(caught.value.response.headers["retry-after"]).timestamp()
    assert provider.log()[0]["at"] + 60 <= when <= provider.log()[0]["at"] + 61


def test_faults_inside_the_answer(provider, gpt, claude):
    for kind in ("length", "refusal", "content_filter"):
        provider.faults(kind=kind, next=1, api="openai")
    cut, refused, filtered = (ask_gpt(gpt).choices[0] for _ in range(3))
    assert cut.finish_reason == "length"
    assert refused.message.refusal
    assert refused.message.content is None
    assert filtered.finish_reason == "content_filter"
    for kind in ("length", "refusal", "content_filter"):
        provider.faults(kind=kind, next=1, api="anthropic")
    assert ask_claude(claude).stop_reason == "max_tokens"
    assert ask_claude(claude).stop_reason == "refusal"
    with pytest.raises(anthropic.BadRequestError, match="content filtering"):
        ask_claude(claude)


def test_a_bad_answer_is_right_in_its_protocol_and_not_of_the_schema(provider, gpt, claude):
    provider.faults(kind="bad_answer")
    asked = {"model": "m", "messages": [{"role": "user", "content": PROMPT}]}
    with pytest.raises(pydantic.ValidationError):
        gpt.chat.completions.parse(**asked, response_format=People)
    with pytest.raises(pydantic.ValidationError):
        claude.messages.parse(**asked, max_tokens=99, output_format=People)
    assert ask_gpt(gpt).choices[0].message.content == ""


def test_a_cut_stream_ends_without_a_finish(provider, gpt, claude):
    provider.faults(kind="cut_stream")
    chunks = list(ask_gpt(gpt, stream=True))
    assert {chunk.choices[0].finish_reason for chunk in chunks} == {None}
    _, message = stream_claude(claude)
    assert message.stop_reason is None
    assert [line["whole"] for line in provider.log()] == [False, False]


@pytest.mark.parametrize("kind", ["bad_json", "cut_json"])
def test_a_broken_stream_is_an_error(provider, gpt, claude, kind):
    provider.faults(kind=kind)
    with pytest.raises((ValueError, httpx2.HTTPError, openai.APIError)):
        list(ask_gpt(gpt, stream=True))
    with pytest.raises((ValueError, httpx2.HTTPError, anthropic.APIError)):
        stream_claude(claude)


@pytest.mark.parametrize("kind", ["hang", "stall"])
def test_a_provider_that_goes_silent_is_left_and_sees_it(provider, kind):
    provider.faults(kind=kind)
    with (
        openai.OpenAI(
            base_url=provider.openai_url, api_key="k", max_retries=0, timeout=0.2
        ) as client,
        pytest.raises((openai.APITimeoutError, httpx2.TimeoutException)),
    ):
        list(ask_gpt(client, stream=True))
    until(lambda: provider.stats()["disconnects"] == 1)
    assert provider.stats()["in_flight"] == 0
    assert provider.log()[0]["status"] == 499


def test_a_slow_answer_is_late_and_whole(provider, gpt):
    provider.faults(kind="slow", next=1, seconds=0.3)
    assert ask_gpt(gpt).choices[0].message.content.startswith(SUMMARY)
    assert provider.log()[0]["duration_s"] >= 0.3


def test_only_the_poisoned_document_fails(provider, gpt):
    provider.faults(kind="500", match="doc-13")
    failed = []
    for number in range(10, 16):
        try:
            ask_gpt(gpt, prompt=f"doc-{number}")
        except openai.InternalServerError:
            failed.append(number)
    assert failed == [13]


def test_a_request_that_the_quota_refuses_uses_up_no_fault(provider, gpt):
    provider.quota(requests_per_minute=60)
    ask_gpt(gpt)
    provider.faults(kind="500", next=1)
    with pytest.raises(openai.RateLimitError):
        ask_gpt(gpt)
    assert provider.active_faults()[0]["struck"] == 0


# -- latency --------------------------------------------------------------------------------------


def test_latency_and_time_to_the_first_token(provider, gpt, claude):
    provider.latency(0.2, per_token_s=0.01, first_token_s=0.05)
    answer = ask_gpt(gpt)
    expected = 0.2 + 0.01 * answer.usage.completion_tokens
    assert expected <= provider.log()[0]["duration_s"] < expected + 1
    started = time.monotonic()
    chunks = iter(ask_gpt(gpt, stream=True))
    next(chunks)
    assert 0.05 <= time.monotonic() - started < 0.2
    list(chunks)
    assert time.monotonic() - started >= expected * 0.9


def test_latency_can_differ_per_api(provider, gpt, claude):
    provider.latency(0.3, api="anthropic")
    ask_gpt(gpt)
    ask_claude(claude)
    fast, slow = (line["duration_s"] for line in provider.log())
    assert fast < 0.3 <= slow


# -- quotas ---------------------------------------------------------------------------------------


def hammer(ask, seconds, threads=6):
    """Asks as fast as it goes; the errors are the provider's refusals."""
    end = time.monotonic() + seconds

    def work(_):
        refusals = []
        while time.monotonic() < end:
            try:
                ask()
            except (openai.RateLimitError, anthropic.RateLimitError) as error:
                refusals.append(error.response)
        return refusals

    with ThreadPoolExecutor(threads) as pool:
        return [refusal for found in pool.map(work, range(threads)) for refusal in found]


def assert_bounded(log, per_minute, cost):
    """Granted in any window <= the rate over the window and one capacity."""
    granted = sorted((line["at"], cost(line)) for line in log if line["granted"])
    capacity = max(per_minute / 60, *(amount for _, amount in granted))
    sums = [0.0, *itertools.accumulate(amount for _, amount in granted)]
    for first, last in itertools.combinations_with_replacement(range(len(granted)), 2):
        window = granted[last][0] - granted[first][0]
        assert sums[last + 1] - sums[first] <= per_minute * window / 60 + capacity + 0.5
    return sums[-1], granted[-1][0] - granted[0][0], capacity


def test_requests_per_minute_are_enforced_exactly_and_wholly_usable(provider, gpt):
    provider.quota(requests_per_minute=1_200)
    refusals = hammer(lambda: ask_gpt(gpt), 1.5)
    log = provider.log()
    _, _, capacity = assert_bounded(log, 1_200, lambda _: 1)
    granted = sorted(line["at"] for line in log if line["granted"])
    for refused in (line["at"] for line in log if not line["granted"]):
        # Nobody is refused while there is quota left, however fast or slow we ask.
        asked = bisect.bisect(granted, refused)
        assert asked >= 20 * (refused - granted[0]) + capacity - 2
    assert provider.stats()["refused"] == len(refusals) > 0


def test_openai_tokens_are_charged_with_the_whole_allowance(provider, gpt):
    provider.quota(tokens_per_minute=120_000)
    hammer(lambda: ask_gpt(gpt, max_tokens=150), 1.5)
    assert_bounded(provider.log(), 120_000, lambda line: line["input_tokens"] + line["max_tokens"])


def test_anthropic_input_and_output_are_counted_apart(provider, claude):
    provider.quota(api="anthropic", input_tokens_per_minute=60_000, output_tokens_per_minute=6_000)
    refusals = hammer(lambda: ask_claude(claude, max_tokens=4_000), 1.5)
    log = [line for line in provider.log() if line["granted"]]
    assert_bounded(log, 60_000, lambda line: line["input_tokens"])
    # max_tokens is irrelevant; what was in flight together may exceed the bucket.
    spent = sum(line["output_tokens"] for line in log)
    seconds = log[-1]["at"] - log[0]["at"]
    in_flight = provider.stats()["max_in_flight"]
    assert 80 * seconds < spent <= 100 * seconds + 100 + 20 * in_flight
    assert {"anthropic-ratelimit-output-tokens-remaining"} <= set(refusals[-1].headers)


def test_who_waits_as_told_is_granted(provider, gpt, claude):
    provider.quota(requests_per_minute=240, burst_s=0.1)
    for client, ask, error in (
        (gpt, ask_gpt, openai.RateLimitError),
        (claude, ask_claude, anthropic.RateLimitError),
    ):
        ask(client)
        with pytest.raises(error) as caught:
            ask(client)
        headers = caught.value.response.headers
        wait_s = int(headers["retry-after-ms"]) / 1000
        assert 0 < wait_s <= 0.25
        assert headers["retry-after"] == "1"
        time.sleep(wait_s)  # the promise under test is about this very time
        ask(client)


def test_accounts_and_apis_have_their_own_buckets(provider, gpt, claude):
    provider.quota(requests_per_minute=60)
    provider.quota(account="vip", requests_per_minute=60_000)
    ask_gpt(gpt)
    ask_claude(claude)
    with openai.OpenAI(base_url=provider.openai_url, api_key="vip", max_retries=0) as vip:
        for _ in range(5):
            ask_gpt(vip)
    with pytest.raises(openai.RateLimitError):
        ask_gpt(gpt)
    with pytest.raises(anthropic.RateLimitError):
        ask_claude(claude)


def test_a_model_with_a_quota_of_its_own_does_not_draw_on_the_accounts(provider, gpt):
    provider.quota(requests_per_minute=60)
    provider.quota(model="sim-large", requests_per_minute=60)
    ask_gpt(gpt)
    ask_gpt(gpt, model="sim-large")
    for model in ("sim-small", "sim-large"):
        with pytest.raises(openai.RateLimitError):
            ask_gpt(gpt, model=model)


def test_openai_headers_tell_limit_remaining_and_reset(provider, gpt):
    provider.quota(requests_per_minute=600, tokens_per_minute=60_000)
    raw = gpt.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "x" * 396}], max_tokens=97
    )
    assert raw.headers["x-ratelimit-limit-requests"] == "600"
    assert raw.headers["x-ratelimit-remaining-requests"] == "599"
    assert raw.headers["x-ratelimit-limit-tokens"] == "60000"
    assert 59_800 <= int(raw.headers["x-ratelimit-remaining-tokens"]) <= 59_850
    assert raw.headers["x-ratelimit-reset-requests"].endswith("ms")
    assert 150 <= int(raw.headers["x-ratelimit-reset-tokens"].removesuffix("ms")) <= 200
    assert raw.headers["x-request-id"] == provider.log()[0]["request_id"]


def test_anthropic_headers_tell_limit_remaining_and_reset(provider, claude):
    provider.quota(requests_per_minute=600, input_tokens_per_minute=60, output_tokens_per_minute=60)
    raw = claude.messages.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "x" * 396}], max_tokens=100
    )
    headers = {k.removeprefix("anthropic-ratelimit-"): v for k, v in raw.headers.items()}
    assert headers["requests-limit"] == "600"
    assert headers["requests-remaining"] == "599"
    assert headers["input-tokens-remaining"] == "0"  # 103 of 60: the largest job is let in
    output = raw.parse().usage.output_tokens
    assert headers["output-tokens-remaining"] == str(max(0, 60 - output))
    reset = datetime.fromisoformat(headers["input-tokens-reset"]).timestamp()
    assert 102 <= reset - provider.log()[0]["at"] <= 105


def test_a_provider_may_keep_its_limits_to_itself():
    with simulated(requests_per_minute=60, limit_headers=False) as silent:
        client = openai.OpenAI(base_url=silent.openai_url, api_key="a", max_retries=0)
        raw = client.chat.completions.with_raw_response.create(
            model="m", messages=[{"role": "user", "content": "x"}]
        )
        assert not [name for name in raw.headers if "ratelimit" in name]
        with pytest.raises(openai.RateLimitError) as refused:
            ask_gpt(client)
    assert not [name for name in refused.value.response.headers if "ratelimit" in name]


def test_without_a_quota_there_are_no_rate_limit_headers(provider, gpt):
    raw = gpt.chat.completions.with_raw_response.create(
        model="m", messages=[{"role": "user", "content": "x"}]
    )
    assert not [name for name in raw.headers if "ratelimit" in name]


# -- control --------------------------------------------------------------------------------------


def test_log_and_stats_agree(provider, gpt, claude):
    provider.faults({"kind": "500", "rate": 0.2}, {"kind": "refusal", "rate": 0.2})
    provider.quota(requests_per_minute=3_000, burst_s=0.2)

    def ask(number):
        try:
            ask_gpt(gpt, prompt=f"doc {number}") if number % 2 else ask_claude(claude)
        except (openai.APIStatusError, anthropic.APIStatusError):
            return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(200)))
    log, stats = provider.log(), provider.stats()
    assert stats["requests"] == len(log) == len({line["seq"] for line in log}) == 200
    assert stats["answered"] == sum(line["whole"] for line in log)
    assert stats["refused"] == sum(line["fault"] == "quota" for line in log)
    assert stats["tokens"] == {
        "input": sum(line["input_tokens"] for line in log if line["granted"]),
        "output": sum(line["output_tokens"] for line in log),
    }
    for status, count in stats["by_status"].items():
        assert count == sum(line["status"] == int(status) for line in log)
    for field in ("path", "account", "model"):
        assert sum(sum(counts.values()) for counts in stats[f"by_{field}"].values()) == 200
    assert 1 <= stats["max_in_flight"] <= 8
    assert stats["in_flight"] == 0


def test_a_line_of_the_log_says_which_question_it_was(provider, gpt):
    before = time.time()
    ask_gpt(gpt, prompt="hello [[sim:doc-7]]")
    ask_gpt(gpt, extra_headers={"x-sim-tag": "mine"})
    marked, tagged = provider.log()
    assert (marked["tag"], tagged["tag"]) == ("doc-7", "mine")
    assert (
        marked["prompt_sha256"]
        == hashlib.sha256(f"{SYSTEM}\nhello [[sim:doc-7]]".encode()).hexdigest()
    )
    assert (marked["account"], marked["model"]) == ("key-o", "sim-small")
    assert abs(marked["at"] - before) < SECONDS
    assert provider.log(last=1) == [tagged]


def test_reset_forgets_everything(provider, gpt):
    provider.quota(requests_per_minute=60)
    provider.faults(kind="refusal")
    ask_gpt(gpt)
    provider.reset()
    assert provider.log() == provider.active_faults() == []
    assert provider.stats()["requests"] == 0
    assert ask_gpt(gpt).choices[0].message.refusal is None
    ask_gpt(gpt)


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [
        ("POST", "/_sim/faults", {"kind": "nonsense"}),
        ("POST", "/_sim/quota", {"requests_per_minute": -1}),
        ("POST", "/_sim/quota", {"request_per_minute": 1}),
        ("POST", "/_sim/latency", {"latency_s": "soon"}),
        ("POST", "/_sim/latency", ["x"]),
        ("DELETE", "/_sim/faults?id=x", None),
        ("GET", "/_sim/log?last=-1", None),
    ],
)
def test_bad_control_input_is_one_clear_line(provider, method, path, data):
    with pytest.raises(ValueError, match=r".") as caught:
        provider.send(method, path, data)
    assert "\n" not in str(caught.value)


def test_a_faults_file_and_a_log_file(tmp_path):
    (tmp_path / "faults.json").write_text('[{"kind": 503, "next": 1}]')
    with simulated(faults=tmp_path / "faults.json", log=tmp_path / "log.jsonl") as provider:
        with openai.OpenAI(base_url=provider.openai_url, api_key="k", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError):
                ask_gpt(client)
            ask_gpt(client)
        wanted = provider.log()
        until(lambda: len((tmp_path / "log.jsonl").read_text().splitlines()) == 2)
    written = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == wanted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_on_a_signal_even_with_a_hanging_request(number):
    process = subprocess.Popen(
        [sys.executable, "-m", "llmtasks.simulator", "--json"], stdout=subprocess.PIPE, text=True
    )
    with process:
        urls = json.loads(process.stdout.readline())
        httpx2.post(f"{urls['url']}/_sim/faults", json={"kind": "hang"})
        with ThreadPoolExecutor(1) as pool:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
            asked = pool.submit(
                httpx2.post, f"{urls['openai_base_url']}/chat/completions", json=body, timeout=10
            )
            until(lambda: httpx2.get(f"{urls['url']}/_sim/stats").json()["in_flight"] == 1)
            process.send_signal(number)
            assert process.wait(SECONDS) == 0
            assert isinstance(asked.exception(), httpx2.HTTPError)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--requests-per-minute", "0"], "--requests-per-minute"),
        (["--faults", "missing.json"], "missing.json"),
        (["--port", "99999"], "--port"),
    ],
)
def test_a_bad_option_is_exit_2_and_names_it(arguments, line):
    done = subprocess.run(
        [sys.executable, "-m", "llmtasks.simulator", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert line in done.stderr
