"""`summarize`: the document in few words. The output is the summary, a string."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import force_setattr

from llmtasks.errors import OutputInvalid
from llmtasks.task_types.base import (
    LONGEST_ANSWER,
    Document,
    Options,
    TaskType,
    language_code,
    without_wrapping,
)
from llmtasks.text import language, tokens

#: A summary may be this many times as long as asked, and so many words longer, before it is none.
_TOLERANCE = 3
_SLACK_WORDS = 60

#: `Here is a summary of the document:`, `**Summary:**`, `# Summary`: never the summary itself.
_PREAMBLE = re.compile(
    r"(?:(?:sure|certainly|of course)[,.!]?\s+)?(?:here(?:['\u2019]s| is)|below is)\s+(?:a|an|the|your|my)\s"
    r"[^:\n]{0,40}\bsummary\b[^:\n]{0,60}:\s+"
    r"|#{1,6} summary:?[ \t]*\n+"
    r"|\*\*summary:?\*\*:?\s+"
    r"|summary:\s+",
    re.IGNORECASE,
)

_STYLES = {
    "paragraph": "as one paragraph of plain text",
    "bullets": 'as a list of key points, each on its own line that begins with "- "',
}


class SummarizeOptions(Options, frozen=True, kw_only=True):
    """`language` is that of the summary, a code or an English name; None: the document's own."""

    max_words: Annotated[int, Meta(ge=10, le=2000)] = 120
    style: Literal["paragraph", "bullets"] = "paragraph"
    language: str | None = None

    def __post_init__(self) -> None:
        if self.language is not None:
            force_setattr(self, "language", language_code("language", self.language))


class Summarize(TaskType[SummarizeOptions]):
    """One question; the answer must be a text of about the asked length, and not the document itself."""

    name = "summarize"
    options = SummarizeOptions
    placeholders = frozenset({"max_words", "style", "language"})

    def values(self, options: SummarizeOptions) -> Mapping[str, str]:
        """What the prompt says."""
        return {
            "max_words": str(options.max_words),
            "style": _STYLES[options.style],
            "language": language.english_name(options.language)
            if options.language
            else "the language of the document",
        }

    def max_output_tokens(self, document: Document, options: SummarizeOptions) -> int:
        """The asked words at the tokens per word of the document's language, half as much again, and some."""
        size, per_word = _measured(document, options)
        # A summary is no longer than its document, except a little where that is a line or two.
        words = min(options.max_words * per_word * 1.5, 2.0 * size)
        return min(64 + int(words), LONGEST_ANSWER)

    def expected_output_tokens(self, document: Document, options: SummarizeOptions) -> int:
        """Models stay below the words they may use, and well below the document's own."""
        size, per_word = _measured(document, options)
        return max(1, int(min(0.75 * options.max_words * per_word, 0.5 * size)))

    def accept(self, answer: str, document: Document, options: SummarizeOptions) -> str:
        """The summary without fence and preamble.

        Raises:
            OutputInvalid: blank, far too long, or a long document as it was.
        """
        summary = without_wrapping(answer, _PREAMBLE, document)
        words = language.word_count(summary)
        if words == 0:
            raise OutputInvalid("the summary is blank")
        if words > max(_TOLERANCE * options.max_words, options.max_words + _SLACK_WORDS):
            raise OutputInvalid(
                f"the summary has about {words} words; at most {options.max_words} were asked for"
            )
        if words > options.max_words and summary.split() == document.text.split():
            raise OutputInvalid("the answer is a copy of the document, not a summary")
        return summary


def _measured(document: Document, options: SummarizeOptions) -> tuple[int, float]:
    """Tokens of the document, and of a word of the summary."""
    size = tokens.estimate(document.text)
    per_word = min(max(size / max(language.word_count(document.text), 1), 1.4), 6.0)
    return size, per_word if options.language is None else max(per_word, 3.0)
