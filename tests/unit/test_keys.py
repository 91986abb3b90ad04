from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.messages import Request
from llmtasks.text.keys import answer_key, request_key

ANSWER: dict[str, Any] = {
    "tenant": "default",
    "task_type": "translate",
    "options": {"target_language": "es", "source_language": None},
    "document_hash": "d" * 64,
    "prompt_sha256": "p" * 64,
    "models": [("openai", "gpt-4o", None), ("openai", "llama", "http://localhost:8000/v1")],
    "temperature": 0,
    "max_output_tokens": None,
    "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
}
REQUEST = Request(system="s", prompt="p", max_output_tokens=10)
MODELS = [("openai", "gpt-4o", None)]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=4,
)


def shuffled(value: Any) -> Any:
    """The same JSON value with its keys the other way round."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(one) for one in value] if isinstance(value, list) else value


@given(options=st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_the_order_of_keys_never_matters(options):
    one = answer_key(**{**ANSWER, "options": options})
    assert one == answer_key(**{**ANSWER, "options": shuffled(options)})


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("tenant", "another"),
        ("task_type", "summarize"),
        ("options", {"target_language": "fr", "source_language": None}),
        ("options", {"target_language": "es", "source_language": "en"}),
        ("document_hash", "e" * 64),
        ("prompt_sha256", "q" * 64),
        ("models", [("openai", "gpt-4o", None)]),
        (
            "models",
            [("openai", "gpt-4o", None), ("anthropic", "llama", "http://localhost:8000/v1")],
        ),
        ("models", [("openai", "gpt-4o", None), ("openai", "llama", "http://localhost:8001/v1")]),
        ("models", [("openai", "gpt-4.1", None), ("openai", "llama", "http://localhost:8000/v1")]),
        ("temperature", 0.2),
        ("max_output_tokens", 100),
        ("schema", None),
        ("schema", {"type": "object", "properties": {"b": {"type": "string"}}}),
    ],
)
def test_another_value_of_any_field_is_another_answer(field, other):
    assert answer_key(**ANSWER) != answer_key(**{**ANSWER, field: other})


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, system="t"),
        replace(REQUEST, prompt="p "),
        replace(REQUEST, max_output_tokens=11),
        replace(REQUEST, temperature=0.1),
        replace(REQUEST, output_schema={"type": "object"}),
        replace(REQUEST, system="sp", prompt=""),
    ],
)
def test_another_question_is_another_request(other):
    assert request_key("t", MODELS, REQUEST) != request_key("t", MODELS, other)


def test_a_request_is_apart_by_tenant_and_model():
    mine = request_key("t", MODELS, REQUEST)
    assert mine != request_key("u", MODELS, REQUEST)
    assert mine != request_key("t", [("openai", "gpt-4o", "http://proxy/v1")], REQUEST)


def test_documents_in_two_unicode_forms_are_two_questions_but_options_are_one():
    composed, decomposed = (unicodedata.normalize(form, "Málaga") for form in ("NFC", "NFD"))
    requests = [replace(REQUEST, prompt=text) for text in (composed, decomposed)]
    assert request_key("t", MODELS, requests[0]) != request_key("t", MODELS, requests[1])
    options = [{**ANSWER, "options": {"place": text}} for text in (composed, decomposed)]
    assert answer_key(**options[0]) == answer_key(**options[1])


@given(number=st.integers(-(2**50), 2**50))
def test_a_whole_number_is_the_same_as_an_integer_or_a_float(number):
    as_float = {**ANSWER, "temperature": float(number), "options": {"n": float(number)}}
    assert answer_key(**{**ANSWER, "temperature": number, "options": {"n": number}}) == answer_key(
        **as_float
    )


def test_true_is_not_one():
    with_bool = answer_key(**{**ANSWER, "options": {"n": True}})
    assert with_bool != answer_key(**{**ANSWER, "options": {"n": 1}})


def test_order_and_repetition_of_providers_in_the_settings_do_not_matter():
    models = ANSWER["models"]
    other = [*reversed(models), models[0]]
    assert answer_key(**ANSWER) == answer_key(**{**ANSWER, "models": other})


def test_keys_do_not_change_between_versions_unnoticed():
    """Stored results are found by these. If this fails, raise `_VERSION` on purpose, or undo the change."""
    assert (
        answer_key(**ANSWER) == "b5ddc7a34fcbd31cab7825fdbb9afab0040f7f1128cca42e3a0d737e96fc3d7f"
    )
    assert request_key("default", MODELS, REQUEST) == (
        "7469de5f45825d11ad2b585cef9714247121300f4796fb837d1e0a823652ce2b"
    )
