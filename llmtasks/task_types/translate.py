"""`translate`: the document in another language. The output is the translation, a string."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec.structs import force_setattr

from llmtasks.errors import DocumentTooLarge, OutputInvalid
from llmtasks.task_types.base import (
    LONGEST_ANSWER,
    Document,
    Options,
    TaskType,
    language_code,
    without_wrapping,
)
from llmtasks.text import language, tokens

_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly|of course)[,.!]?\s+)?(?:here(?:['\u2019]s| is)|below is)\s+(?:a|an|the|your|my)\s"
    r"[^:\n]{0,40}\btranslat(?:ion|ed)\b[^:\n]{0,60}:\s+"
    r"|#{1,6} translation:?[ \t]*\n+"
    r"|\*\*translation:?\*\*:?\s+"
    r"|translation:\s+",
    re.IGNORECASE,
)

#: Words that a translation has per word of its source, at the very outside. Languages differ by far
#: less than this; what is beyond has lost or invented text. Short texts prove nothing.
_FEWEST_WORDS_FOR_RATIO = 40
_LEAST_RATIO = 0.25
_GREATEST_RATIO = 4.0


class TranslateOptions(Options, frozen=True, kw_only=True):
    """Languages by ISO 639-1 code (`es`, `pt-BR`) or English name; source None: whatever it is."""

    target_language: str
    source_language: str | None = None

    def __post_init__(self) -> None:
        force_setattr(
            self, "target_language", language_code("target_language", self.target_language)
        )
        if self.source_language is not None:
            force_setattr(
                self, "source_language", language_code("source_language", self.source_language)
            )


class Translate(TaskType[TranslateOptions]):
    """One question; the answer must be neither the source nor far shorter or longer than it."""

    name = "translate"
    options = TranslateOptions
    placeholders = frozenset({"target_language", "source"})

    def values(self, options: TranslateOptions) -> Mapping[str, str]:
        """What the prompt says; `source` is ` from Spanish`, or nothing where the language is not known."""
        source = options.source_language
        return {
            "target_language": language.english_name(options.target_language),
            "source": f" from {language.english_name(source)}" if source else "",
        }

    def max_output_tokens(self, document: Document, options: TranslateOptions) -> int:
        """Tokens of the source, times what the target's vocabulary makes of them, and some.

        Raises:
            DocumentTooLarge: the translation would not fit into one answer.
        """
        size = tokens.estimate(document.text)
        if size > LONGEST_ANSWER:
            raise DocumentTooLarge(
                f"document {document.document_id!r} has about {size} tokens: its translation does not"
                f" fit into one answer of {LONGEST_ANSWER} tokens. Split it, or set"
                " tasks.translate.max_output_tokens to what your model can write"
            )
        factor = _tokens_per_source_token(document.text, options.target_language)
        return min(128 + int(size * factor), LONGEST_ANSWER)

    def expected_output_tokens(self, document: Document, options: TranslateOptions) -> int:
        """The limit has a third to spare."""
        size = tokens.estimate(document.text)
        factor = _tokens_per_source_token(document.text, options.target_language)
        return max(1, int(0.75 * size * factor))

    def accept(self, answer: str, document: Document, options: TranslateOptions) -> str:
        """The translation without fence and preamble.

        Raises:
            OutputInvalid: blank, the source again, or far from its length.
        """
        translation = without_wrapping(answer, _PREAMBLE, document)
        if not translation:
            raise OutputInvalid("the translation is blank")
        if translation.split() == document.text.split() and _must_change(document.text, options):
            raise OutputInvalid("the answer is the document itself, not a translation")
        source_words = language.word_count(document.text)
        ratio = language.word_count(translation) / max(source_words, 1)
        if source_words >= _FEWEST_WORDS_FOR_RATIO and not _LEAST_RATIO <= ratio <= _GREATEST_RATIO:
            raise OutputInvalid(
                f"the translation has {ratio:.2g} times the words of the document;"
                " translate all of it, and nothing else"
            )
        return translation


#: Languages whose text takes about twice the tokens of English in many models' vocabularies, or more.
_TWICE = re.compile(r"ar|bg|cs|el|fa|fi|he|hu|ja|ko|pl|ru|sr|tr|uk|vi|yue|zh")
#: Languages that take little more than English.
_CHEAP = re.compile(r"af|ca|da|de|en|es|fr|gl|id|it|ms|nl|no|nb|nn|pt|ro|sv")


def _tokens_per_source_token(text: str, target: str) -> float:
    """1.6 to 3, by the target's script; a source that is not in Latin script is dear already."""
    if _CHEAP.fullmatch(language.base(target)):
        return 1.6
    dear_source = tokens.estimate(text) > 2.4 * language.word_count(text)
    if _TWICE.fullmatch(language.base(target)):
        return 1.6 if dear_source else 2.3
    return 2.0 if dear_source else 3.0


def _must_change(text: str, options: TranslateOptions) -> bool:
    """Whether an unchanged text is surely not translated: names, numbers and code may stay as they are."""
    source = language.guess(text)
    if source is None:
        return False
    # The text speaks for itself only where it agrees with, or there is nothing said about, its language.
    said = options.source_language
    if said is not None and language.base(said) == language.base(options.target_language):
        return False
    return source != language.base(options.target_language)
