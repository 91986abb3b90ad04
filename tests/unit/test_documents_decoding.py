"""Bytes to text."""

from __future__ import annotations

import codecs

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtasks.documents.decoding import Decoded, decode, decode_html, lines
from llmtasks.errors import InvalidDocument

MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(TEXTS, st.sampled_from(sorted(MARKS)))
@example("\ufeffa second mark is text", "utf-16-le")
def test_a_marked_text_of_any_unicode_encoding_comes_back_to_the_letter(text, encoding):
    decoded = decode(MARKS[encoding] + text.encode(encoding))
    assert (decoded.text, decoded.encoding) == (text, encoding)


@given(TEXTS.filter(lambda text: not text.startswith(("\ufeff", "%PDF-"))))
@example("RIFF raff, ID3 and GIF89a are words as well.")
@example("a\x01b\x1b[0m")
def test_what_is_utf_8_is_never_taken_for_anything_else(text):
    assert decode(text.encode()).text == text


@given(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), min_size=4),
    st.sampled_from(["utf-16-le", "utf-16-be"]),
)
def test_utf_16_without_a_mark_is_known_by_its_nuls(text, encoding):
    assert decode(text.encode(encoding)) == decode(MARKS[encoding] + text.encode(encoding))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_text_or_an_error_of_one_line(data):
    try:
        decode(data).text.encode()
    except InvalidDocument as caught:
        error = str(caught)
    else:
        error = "none"
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café", "cp1252"),
        ("Déjà vu: “smart quotes” and €5 for naïve coöperation in Zürich.", "cp1252"),
        ("Größe und Übermut tun selten gut. Straße.", "latin-1"),
        ("Så kom vi till ön på kvällen. Åtta båtar låg vid bryggan.", "latin-1"),
        ("¿Dónde está la biblioteca? ¡Qué alegría, niño!", "cp1252"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy. Toto je český text o životě v městě.", "cp1250"),
        ("Съешь же ещё этих мягких французских булок да выпей чаю.", "cp1251"),
        ("Съешь же ещё этих мягких французских булок да выпей чаю.", "koi8-r"),
        ("Καλημέρα κόσμε, αυτό είναι ένα κείμενο.", "cp1253"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。", "shift-jis"),
        ("我们的文件在这里,请查看并告诉我们您的意见。谢谢。", "gb18030"),
        ("我們的文件在這裡,請查看並告訴我們您的意見。謝謝。", "big5"),
        ("안녕하세요 이것은 한국어 문서입니다", "euc-kr"),
    ],
)
def test_old_encodings_are_guessed_right(text, encoding):
    assert decode(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    ("page", "encoding"),
    [
        ('<?xml version="1.0" encoding="iso-8859-2"?><p>žluťoučký</p>', "iso-8859-2"),
        ("<html><head><meta charset='shift_jis'><p>名前</p>", "shift-jis"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">мы', "koi8-r"),
        ('<meta charset="iso-8859-1">5 € “quoted”', "cp1252"),
        ('<meta charset="utf-16">é', "utf-8"),
        ('<meta charset="no-such-charset">é', "utf-8"),
        ('<meta charset="us-ascii">é', "utf-8"),
    ],
)
def test_a_page_is_read_as_it_declares_unless_that_cannot_be(page, encoding):
    got = decode_html(page.encode(encoding)).text
    assert got == page or "us-ascii" in page  # browsers read that as cp1252


def test_a_mark_outweighs_what_a_page_declares():
    page = '<meta charset="koi8-r">мы'
    assert decode_html(page.encode("utf-8-sig")).text == page


def test_every_line_end_becomes_one_character():
    assert lines("a\r\nb\rc\nd\r\r\n") == "a\nb\nc\nd\n\n"


@pytest.mark.parametrize("bad", [b" \xff end", b" \xe9 end", "\u20ac".encode()[:2]])
def test_one_bad_byte_makes_utf8_no_other_encoding(bad):
    with pytest.raises(InvalidDocument, match="is UTF-8 that is broken at byte"):
        decode("the \u201cnew\u201d price \u2013 5 \u20ac, na\u00efve ".encode() + bad)


def test_seven_bit_japanese_is_read_and_not_taken_for_ascii():
    text = "\u6e2f\u306e\u5831\u544a and ASCII"
    assert decode(text.encode("iso2022_jp")) == Decoded(text, "iso-2022-jp")
