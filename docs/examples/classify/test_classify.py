"""Good answers pass, bad ones are refused with words that help the model. No network, no database."""

from __future__ import annotations

import pytest
from llmtasks_classify import Classify

from llmtasks.errors import OutputInvalid
from llmtasks.task_types import Document, load_prompt

DOCUMENT = Document("a", "Invoice no. 12, due in May.")


def options(*labels: str):
    return Classify.options(labels=labels)


@pytest.mark.parametrize(
    "answer",
    [
        '{"label": "Invoice", "confidence": "high"}',
        '```json\n{"label": " invoice ", "confidence": "high"}\n```',
    ],
)
def test_a_label_is_returned_as_it_was_given(answer):
    output = Classify().accept(answer, DOCUMENT, options("letter", "Invoice"))
    assert output == {"label": "Invoice", "confidence": "high"}


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ('{"label": "bill", "confidence": "high"}', "one of: letter, invoice"),
        ('{"label": "invoice", "confidence": 0.9}', "does not follow the schema"),
        ("It is an invoice.", "not valid JSON"),
    ],
)
def test_what_is_no_answer_is_refused(answer, complaint):
    with pytest.raises(OutputInvalid, match=complaint):
        Classify().accept(answer, DOCUMENT, options("letter", "invoice"))


@pytest.mark.parametrize("labels", [("invoice",), ("a", "A"), ("", "b"), ("x" * 61, "b")])
def test_labels_that_make_no_question_are_refused(labels):
    with pytest.raises(ValueError, match="labels: "):
        options(*labels)


def test_the_schema_allows_the_given_labels_only():
    schema = Classify().output_schema(options("letter", "invoice"))
    assert schema["properties"]["label"]["enum"] == ["letter", "invoice"]


def test_the_prompt_is_shipped_and_uses_what_it_may():
    assert "{{labels}}" in load_prompt(Classify()).template
