from __future__ import annotations

import pytest
from support.task_context import document

from llmtasks import task_types
from llmtasks.errors import OutputInvalid
from llmtasks.text import tokens
from llmtasks.text.language import word_count

SUMMARIZE = task_types.get("summarize")
LONG = "\n\n".join(
    f"In year {year} the council of Lindholm bought {year % 7 + 2} boats and lent books from them."
    for year in range(1950, 1990)
)
CHINESE = (
    "二零二三年三月十二日林霍尔姆公共图书馆开始用一艘旧渡轮借书。这个主意来自馆长米拉·奥卡福。" * 20
)


def options(**given):
    return task_types.parse_options("summarize", given)


def accept(answer, text=LONG, **given):
    return SUMMARIZE.accept(answer, document(text), options(**given))


@pytest.mark.parametrize(
    ("answer", "text", "given"),
    [
        (
            "For forty years the council of Lindholm bought boats and lent books from them.",
            LONG,
            {},
        ),
        ("- The council bought boats.\n- It lent books.", LONG, {"style": "bullets"}),
        ("Boats.", LONG, {"max_words": 10}),
        ("林霍尔姆图书馆自二零二三年起用旧渡轮借书，由馆长提议。", CHINESE, {"max_words": 20}),  # noqa: RUF001
        (
            "リンドホルムの図書館は二〇二三年から古いフェリーで本を貸している。",
            CHINESE,
            {"max_words": 20},
        ),
        ("ห้องสมุดลินด์โฮล์มให้ยืมหนังสือจากเรือข้ามฟากเก่า", CHINESE, {"max_words": 15}),
        ("Die Gemeinde kaufte vierzig Jahre lang Boote.", LONG, {"language": "de"}),
        ("42 boats", "42 boats", {}),  # nothing to shorten: a copy is a good summary
        ("The summary: a word that may well stand at the beginning of a good one.", LONG, {}),
        ("Here is where the council lent books: on boats.", LONG, {}),
        ("{brackets} and `code` stay", LONG, {}),
        (
            "Ten words were asked for but this honest sentence has a few more of them.",
            LONG,
            {"max_words": 10},
        ),
    ],
)
def test_good_work_passes_as_it_is(answer, text, given):
    assert accept(answer, text, **given) == answer


@pytest.mark.parametrize(
    "wrapped",
    [
        "Here is a summary of the document:\n\n{}",
        "Here's a concise summary in 120 words: {}",
        "Here’s the summary:\n{}",  # noqa: RUF001
        "Sure! Here is the summary you asked for:\n\n{}",
        "Summary: {}",
        "**Summary:** {}",
        "## Summary\n\n{}",
        "```\n{}\n```",
        "```markdown\n{}\n```",
        "```\nSummary: {}\n```",
    ],
)
def test_wrapping_that_is_surely_not_the_summary_is_taken_off(wrapped):
    text = "The council bought boats.\n\nIt lent books."
    assert accept(wrapped.format(text)) == text


def test_a_document_that_begins_like_a_preamble_may_have_a_summary_that_does():
    text = "Summary: the council bought boats. " + LONG
    assert accept("Summary: boats and books.", text) == "Summary: boats and books."


@pytest.mark.parametrize("answer", ["", "...", "```\n```", "—"])
def test_a_blank_summary_is_refused(answer):
    with pytest.raises(OutputInvalid, match="blank"):
        accept(answer)


def test_a_copy_of_a_long_document_is_refused_but_not_of_a_short_one():
    with pytest.raises(OutputInvalid, match="copy of the document"):
        accept(" ".join(LONG.split()), max_words=word_count(LONG) - 30)
    assert accept(LONG, max_words=2000) == LONG


@pytest.mark.parametrize("text", [LONG, CHINESE], ids=["english", "chinese"])
def test_a_summary_far_beyond_the_asked_length_is_refused_in_any_script(text):
    with pytest.raises(OutputInvalid, match=r"about [0-9]+ words; at most 60 were asked for"):
        accept(text + " more", text, max_words=60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the quick brown fox", 4),
        ("don’t stop: it's — fine", 4),  # noqa: RUF001
        ("林霍尔姆公共图书馆开始用一艘旧渡轮借书", 12),
        ("図書館は古いフェリーで本を貸している", 9),
        ("도서관은 낡은 배에서 책을 빌려준다", 5),
        ("ห้องสมุดให้ยืมหนังสือจากเรือ", 6),
        ("OpenAI 发布了 GPT 模型", 6),
        ("", 0),
    ],
)
def test_words_are_counted_about_right_also_where_they_are_not_spaced(text, words):
    assert word_count(text) == pytest.approx(words, abs=max(1, 0.3 * words))


def test_the_limit_is_tight_but_holds_an_honest_summary_in_any_script():
    for text in (
        LONG,
        CHINESE,
        "Совет города собрался во вторник, чтобы обсудить новый мост. " * 60,
    ):
        honest = text[: int(len(text) * min(1, 120 / word_count(text)))]
        limit = SUMMARIZE.max_output_tokens(document(text), options())
        assert 1.2 * tokens.estimate(honest) < limit < 3 * tokens.estimate(honest) + 64
    in_hindi = SUMMARIZE.max_output_tokens(document(LONG), options(language="hi"))
    assert in_hindi > 1.5 * SUMMARIZE.max_output_tokens(document(LONG), options())
    assert SUMMARIZE.max_output_tokens(document("One short line."), options()) < 80
