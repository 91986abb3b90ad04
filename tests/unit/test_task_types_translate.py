from __future__ import annotations

import pytest
from support.task_context import document

from llmtasks import task_types
from llmtasks.errors import DocumentTooLarge, OutputInvalid
from llmtasks.text import language, tokens

TRANSLATE = task_types.get("translate")
ENGLISH = (
    "On 12 March 2023 the public library of Lindholm began to lend books from a former ferry. The idea came"
    " from Mira Okafor, head of the library, after the bridge to the islands had been closed. The boat visits"
    " nine villages every second week, and people come for a novel and stay for coffee."
)
GOOD = {
    "es": "El 12 de marzo de 2023 la biblioteca pública de Lindholm empezó a prestar libros desde un antiguo"
    " transbordador. La idea fue de Mira Okafor, directora de la biblioteca, tras el cierre del puente a las"
    " islas. El barco visita nueve pueblos cada dos semanas, y la gente viene por una novela y se queda a"
    " tomar café.",
    "fi": "Lindholmin kirjasto alkoi 12. maaliskuuta 2023 lainata kirjoja entisestä lautasta. Idea oli"
    " kirjastonjohtaja Mira Okaforin, kun saarille vievä silta oli suljettu. Vene käy yhdeksässä kylässä joka"
    " toinen viikko, ja ihmiset tulevat hakemaan romaanin ja jäävät kahville.",
    "zh": "2023年3月12日，林霍尔姆公共图书馆开始用一艘旧渡轮借书。这个主意来自图书馆馆长米拉·奥卡福，"  # noqa: RUF001
    "当时通往岛屿的桥已关闭。这艘船每两周访问九个村庄，人们来借小说，也留下来喝咖啡。",  # noqa: RUF001
    "ja": "2023年3月12日、リンドホルム公共図書館は元フェリーから本を貸し出し始めた。島への橋が閉鎖された後、"
    "館長のミラ・オカフォーが思いついたものだ。船は隔週で九つの村を訪れ、人々は小説を借りに来てコーヒーを飲んでいく。",
    "th": "เมื่อวันที่ 12 มีนาคม 2023 ห้องสมุดประชาชนลินด์โฮล์มเริ่มให้ยืมหนังสือจากเรือข้ามฟากเก่า"
    " แนวคิดนี้มาจากมิรา โอคาฟอร์ หัวหน้าห้องสมุด หลังจากสะพานไปยังเกาะถูกปิด เรือแวะเก้าหมู่บ้านทุกสองสัปดาห์"
    " ผู้คนมาเพื่อนวนิยายและอยู่ดื่มกาแฟ",
    "hi": "12 मार्च 2023 को लिंडहोम के सार्वजनिक पुस्तकालय ने एक पुरानी नौका से पुस्तकें उधार देना शुरू किया।"
    " यह विचार पुस्तकालय की प्रमुख मीरा ओकाफोर का था, जब द्वीपों का पुल बंद हो गया था। नाव हर दूसरे सप्ताह नौ"
    " गाँवों में जाती है, और लोग उपन्यास के लिए आते हैं और कॉफ़ी के लिए रुकते हैं।",
}


def accept(answer, text=ENGLISH, target="es", source=None):
    given = {"target_language": target, "source_language": source}
    return TRANSLATE.accept(answer, document(text), task_types.parse_options("translate", given))


@pytest.mark.parametrize("target", GOOD)
def test_a_good_translation_passes_both_ways(target):
    assert accept(GOOD[target], target=target) == GOOD[target]
    assert accept(ENGLISH, GOOD[target], target="en") == ENGLISH


@pytest.mark.parametrize(
    ("text", "target", "source"),
    [
        ("Mira Okafor, Lindholm, 12:30, +49 30 1234567", "es", "en"),
        (
            "def area(width, height):\n    return width * height\n\nprint(area(2, 3))\n" * 5,
            "de",
            "en",
        ),
        ("OK", "fr", None),
        (GOOD["es"], "es", None),  # was in the target language already
        (ENGLISH, "en-GB", "en-US"),
        (ENGLISH, "en", None),
        ("Oslo – Bergen – Trondheim – Tromsø – Bodø – Stavanger – Drammen – Hamar", "ja", "no"),  # noqa: RUF001
    ],
)
def test_what_may_stay_as_it_is_may_stay(text, target, source):
    assert accept(text, text, target, source) == text.strip()


@pytest.mark.parametrize("source", ["en", None, "de"])
@pytest.mark.parametrize("target", ["es", "ja"])
def test_the_source_again_is_no_translation(target, source):
    with pytest.raises(OutputInvalid, match="the document itself"):
        accept(f"\n{ENGLISH}  ", target=target, source=source)


def test_text_that_was_lost_or_invented_shows_in_the_length():
    with pytest.raises(OutputInvalid, match=r"0\.\d+ times the words"):
        accept("Un barco presta libros.")
    with pytest.raises(OutputInvalid, match=r"[0-9.]+ times the words"):
        accept(GOOD["es"] * 6)


def test_a_short_text_proves_nothing_by_its_length():
    assert accept("Prohibido el paso a toda persona ajena a la obra", "No entry") != ""


@pytest.mark.parametrize("answer", ["", " \n"])
def test_a_blank_translation_is_refused(answer):
    with pytest.raises(OutputInvalid, match="blank"):
        accept(answer)


@pytest.mark.parametrize(
    "wrapped",
    ["Here is the translation:\n\n{}", "Sure, here's the translated text in Spanish: {}", "```\n{}\n```",
     "**Translation:** {}", "Translation: {}"],
)  # fmt: skip
def test_wrapping_that_is_surely_not_the_translation_is_taken_off(wrapped):
    assert accept(wrapped.format(GOOD["es"])) == GOOD["es"]


def test_a_fenced_document_stays_fenced():
    text = "```\n# a comment in a script\n```"
    assert accept("```\n# un comentario en un script\n```", text).startswith("```")


@pytest.mark.parametrize("target", GOOD)
def test_the_limit_is_tight_but_holds_an_honest_translation(target):
    """Counted by both public vocabularies; the older one needs far more than today's models do."""
    for text, answer, to in ((ENGLISH, GOOD[target], target), (GOOD[target], ENGLISH, "en")):
        given = task_types.parse_options("translate", {"target_language": to})
        limit = TRANSLATE.max_output_tokens(document(text), given)
        assert limit > 1.2 * tokens.estimate(answer, "gpt-4o")
        assert limit <= 128 + 3 * tokens.estimate(text)
        assert 3 * limit > 1.2 * tokens.estimate(answer, "gpt-4"), "then with more room"


def test_a_document_beyond_one_answer_is_too_large_before_anything_is_paid():
    given = task_types.parse_options("translate", {"target_language": "es"})
    with pytest.raises(DocumentTooLarge, match=r"tasks\.translate\.max_output_tokens"):
        TRANSLATE.max_output_tokens(document(ENGLISH * 400), given)


@pytest.mark.parametrize(
    ("text", "code"),
    [(ENGLISH, "en"), (GOOD["es"], "es"), (GOOD["zh"], "zh"), (GOOD["ja"], "ja"), (GOOD["th"], "th"),
     ("Mira Okafor, Lindholm", None), ("x = 1\ny = 2\n" * 30, None), (GOOD["fi"], None), ("", None)],
)  # fmt: skip
def test_a_language_is_guessed_only_where_it_is_plain(text, code):
    assert language.guess(text) == code


@pytest.mark.parametrize(
    ("written", "code", "name"),
    [
        ("es", "es", "Spanish"),
        ("Castilian", "es", "Spanish"),
        ("PT_br", "pt-BR", "Portuguese (pt-BR)"),
        ("brazilian  portuguese", "pt-BR", "Portuguese (pt-BR)"),
        ("zh-hant", "zh-Hant", "Chinese (zh-Hant)"),
        ("zh-hant-tw", "zh-Hant-TW", "Chinese (zh-Hant-TW)"),
        ("es-419", "es-419", "Spanish (es-419)"),
        ("Norwegian Bokmal", "nb", "Norwegian Bokmål"),
        ("fil", "fil", "Filipino"),
    ],
)
def test_languages_are_written_in_many_ways(written, code, name):
    assert language.normalise(written) == code
    assert language.normalise(code) == code
    assert language.english_name(code) == name


@pytest.mark.parametrize("written", ["", "xx", "deu", "espanol", "English please", "e", "es-", "-"])
def test_an_unknown_language_is_refused(written):
    with pytest.raises(ValueError, match="is no known language"):
        language.normalise(written)
