"""What every task type does with answers that are cut, refused or not usable."""

from __future__ import annotations

from typing import Any

import pytest
from support.task_context import DOCUMENT_ID, Scripted, document

from llmtasks import task_types
from llmtasks.errors import (
    ContextWindowExceeded,
    DocumentTooLarge,
    InvalidDocument,
    OutputInvalid,
    OutputRefused,
    OutputTruncated,
)

SECRET = "Zebulon Quarterstaff lives in Upper Nowhere"
OPTIONS: dict[str, dict[str, Any]] = {
    "summarize": {},
    "extract": {},
    "translate": {"target_language": "es"},
}
GOOD = {
    "summarize": "Where somebody lives.",
    "extract": '{"entities": []}',
    "translate": "Zebulon Quarterstaff vive en Upper Nowhere",
}
each_type = pytest.mark.parametrize("name", OPTIONS)


def run(name: str, context: Scripted, text: str = SECRET) -> Any:
    options = task_types.parse_options(name, OPTIONS[name])
    return task_types.get(name).run(document(text), options, context)


@each_type
def test_a_good_answer_costs_one_question(name):
    context = Scripted(name, [GOOD[name]])
    run(name, context)
    assert len(context.asked) == 1
    assert not context.reported


@each_type
def test_an_answer_that_is_not_usable_is_asked_again_once_with_the_complaint(name):
    context = Scripted(name, ["", GOOD[name]])
    run(name, context)
    first, second = context.asked
    assert second.prompt.startswith(first.prompt)
    assert "could not be used: " in second.prompt
    assert "asking once more" in context.reported[0]


@each_type
def test_two_unusable_answers_are_a_typed_failure(name):
    context = Scripted(name, ["", " \n"])
    with pytest.raises(OutputInvalid):
        run(name, context)
    assert len(context.asked) == 2


@each_type
def test_a_cut_answer_is_asked_again_once_with_more_room(name):
    context = Scripted(name, [OutputTruncated("cut"), GOOD[name]])
    run(name, context)
    first, second = context.asked
    assert second.max_output_tokens == 3 * first.max_output_tokens
    assert second.prompt == first.prompt


@each_type
def test_what_is_cut_twice_fails_as_cut(name):
    with pytest.raises(OutputTruncated):
        run(name, Scripted(name, [OutputTruncated("cut"), OutputTruncated("cut")]))


@each_type
@pytest.mark.parametrize("no_room", [DocumentTooLarge("window"), ContextWindowExceeded("window")])
def test_a_model_without_more_room_leaves_the_answer_cut_not_the_document_too_large(name, no_room):
    with pytest.raises(OutputTruncated):
        run(name, Scripted(name, [OutputTruncated("cut"), no_room]))


@each_type
def test_the_users_own_limit_is_kept(name):
    context = Scripted(name, [OutputTruncated("cut")], max_output_tokens=77)
    with pytest.raises(OutputTruncated):
        run(name, context)
    assert [request.max_output_tokens for request in context.asked] == [77]


@each_type
def test_a_refusal_is_not_argued_with(name):
    context = Scripted(name, [OutputRefused("no")])
    with pytest.raises(OutputRefused):
        run(name, context)
    assert len(context.asked) == 1


@each_type
@pytest.mark.parametrize("text", ["", " \n\t\u3000"])
def test_a_blank_document_is_invalid_and_costs_nothing(name, text):
    context = Scripted(name)
    with pytest.raises(InvalidDocument, match=DOCUMENT_ID):
        run(name, context, text)
    assert not context.asked


@each_type
@pytest.mark.parametrize(
    "answer",
    ["", SECRET * 30, '{"entities": [{"text": "' + SECRET, '{"entities": "' + SECRET + '"}'],
)
def test_no_message_holds_document_text(name, answer):
    context = Scripted(name, [answer, answer])
    said = context.reported
    try:
        run(name, context, (SECRET + ". ") * 20)
    except OutputInvalid as error:
        said = [*said, str(error)]
    assert not any(word in line for line in said for word in SECRET.split() if len(word) > 5)


@each_type
def test_the_tags_around_the_document_never_reach_the_output(name):
    context = Scripted(name, ["", ""])
    with pytest.raises(OutputInvalid):
        run(name, context)
    tag = context.asked[0].prompt.split("<", 1)[1].split(">", 1)[0]
    wrapped = f"<{tag}>\n{GOOD[name]}\n</{tag}>"
    assert run(name, Scripted(name, [wrapped])) == run(name, Scripted(name, [GOOD[name]]))


@each_type
def test_thoughts_of_a_reasoning_model_and_nul_never_reach_the_output(name):
    answer = "<think>\nThe user wants…\n</think>\n\n" + GOOD[name].replace(" ", "\x00 ", 1)
    expected = run(name, Scripted(name, [GOOD[name]]))
    assert run(name, Scripted(name, [answer])) == expected
