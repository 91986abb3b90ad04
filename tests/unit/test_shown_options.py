"""What those who watch see of a job's options."""

from __future__ import annotations

from llmtasks import submission


def test_words_and_numbers_are_shown_and_of_what_may_be_a_text_how_much_it_is():
    given = {
        "target_language": "es",
        "priority": 3,
        "fresh": True,
        "source_language": None,
        "style": "x" * 41,
        "terms": {"a": "b"},
    }
    assert submission.shown(given) == (
        "{'target_language': 'es', 'priority': 3, 'fresh': True, 'style': <41 characters>,"
        " 'terms': <dict of 1>}"
    )


def test_what_is_named_like_a_secret_is_not_shown():
    assert (
        submission.shown({"api_key": "short", "Password": 7}) == "{'api_key': ***, 'Password': ***}"
    )
