"""`classify`: which of the given labels a document belongs under.

The output is `{"label": "invoice", "confidence": "high"}`; the confidence is the model's own word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from llmtasks.task_types import Document, Options, OutputInvalid, TaskType, decode, strict_schema

_FEWEST, _MOST = 2, 50
_LONGEST = 60


class Answer(msgspec.Struct, frozen=True):
    """What the model is asked to answer."""

    label: str
    confidence: Literal["low", "medium", "high"]


class ClassifyOptions(Options, frozen=True, kw_only=True):
    """`labels` are the kinds of documents to choose from: `-o labels=invoice,letter,contract`."""

    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no question. Raised here, it stops a submission before anything is stored."""
        labels = [" ".join(one.split()) for one in self.labels]
        if len({one.casefold() for one in labels}) != len(labels):
            raise ValueError("labels: one is given twice")
        if not _FEWEST <= len(labels) <= _MOST:
            raise ValueError(f"labels: expected {_FEWEST} to {_MOST} of them")
        if not all(0 < len(one) <= _LONGEST for one in labels):
            raise ValueError(f"labels: each has 1 to {_LONGEST} characters")
        msgspec.structs.force_setattr(self, "labels", tuple(labels))


class Classify(TaskType[ClassifyOptions]):
    """One question under a schema that allows the given labels only."""

    name = "classify"
    options = ClassifyOptions
    placeholders = frozenset({"labels"})

    def output_schema(self, options: ClassifyOptions) -> Mapping[str, Any]:
        """The schema of `Answer`, narrowed to the labels of this question."""
        schema = strict_schema(Answer)
        schema["properties"]["label"]["enum"] = list(options.labels)
        return schema

    def values(self, options: ClassifyOptions) -> Mapping[str, str]:
        """What the prompt says for `{{labels}}`."""
        return {"labels": "\n".join(f"- {one}" for one in options.labels)}

    def max_output_tokens(self, document: Document, options: ClassifyOptions) -> int:  # noqa: ARG002
        """Room for the longest label in any script, the confidence, and JSON's punctuation."""
        return 60 + 3 * max(map(len, options.labels))

    def accept(self, answer: str, document: Document, options: ClassifyOptions) -> dict[str, str]:  # noqa: ARG002
        """The answer, with its label spelt as in the options.

        Raises:
            OutputInvalid: no JSON of the form, or a label nobody gave. The model is told, and asked again.
        """
        found = decode(answer, Answer)
        spelling = {one.casefold(): one for one in options.labels}
        label = spelling.get(" ".join(found.label.split()).casefold())
        if label is None:
            raise OutputInvalid(f"the label must be one of: {', '.join(options.labels)}")
        return {"label": label, "confidence": found.confidence}
