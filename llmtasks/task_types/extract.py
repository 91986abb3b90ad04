"""`extract`: the named entities of the document. The output is `{"entities": [{"text", "type"}, …]}`."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from msgspec.structs import force_setattr

from llmtasks.task_types.base import (
    Document,
    Options,
    TaskType,
    decode,
    strict_schema,
)
from llmtasks.text import tokens

#: Tokens of one entity as JSON: the punctuation and a name of a few words in any script.
_PER_ENTITY = 28
_LEAST_TOKENS = 256
_MOST_TOKENS = 4096
#: The JSON of an answer without any entity.
_EMPTY_TOKENS = 12

_TYPE = re.compile(r"[^\W\d_][\w -]{0,39}")
_MOST_TYPES = 32


class Entity(msgspec.Struct, frozen=True):
    """One mention, as the document writes it."""

    text: str
    type: str


class Entities(msgspec.Struct, frozen=True):
    """The answer. Other keys beside these are allowed in an answer, but not asked for."""

    entities: list[Entity]


class ExtractOptions(Options, frozen=True, kw_only=True):
    """`types` are the kinds to look for, as lower-case words; `max_entities` bounds the list."""

    types: tuple[str, ...] = ("person", "organization", "location", "date")
    max_entities: Annotated[int, Meta(ge=1, le=500)] = 100

    def __post_init__(self) -> None:
        types = tuple(dict.fromkeys(" ".join(one.lower().split()) for one in self.types))
        if not 1 <= len(types) <= _MOST_TYPES:
            raise ValueError(f"types: expected 1 to {_MOST_TYPES} of them")
        for one in types:
            if not _TYPE.fullmatch(one):
                raise ValueError(
                    f"types: {one[:40]!r} is not allowed: a word of letters, digits, - and _"
                )
        force_setattr(self, "types", types)


class Extract(TaskType[ExtractOptions]):
    """One question under a schema; what the document does not hold is dropped from the answer."""

    name = "extract"
    options = ExtractOptions
    placeholders = frozenset({"types", "max_entities"})

    def output_schema(self, options: ExtractOptions) -> Mapping[str, Any]:
        """The schema of `Entities`, narrowed to the asked types and number."""
        schema = strict_schema(Entities)
        schema.pop("description", None)
        entities = schema["properties"]["entities"]
        entities["maxItems"] = options.max_entities
        entities["items"].pop("description", None)
        entities["items"]["properties"]["type"]["enum"] = list(options.types)
        return schema

    def values(self, options: ExtractOptions) -> Mapping[str, str]:
        """What the prompt says."""
        return {"types": ", ".join(options.types), "max_entities": str(options.max_entities)}

    def max_output_tokens(self, document: Document, options: ExtractOptions) -> int:
        """As much as the document has (more than prose needs), within the asked number of entities."""
        size = _LEAST_TOKENS + tokens.estimate(document.text)
        return min(max(size, _LEAST_TOKENS), 64 + options.max_entities * _PER_ENTITY, _MOST_TOKENS)

    def expected_output_tokens(self, document: Document, options: ExtractOptions) -> int:
        """Prose names something every other line, and its JSON is as long as half of it."""
        most = self.max_output_tokens(document, options)
        return min(_EMPTY_TOKENS + tokens.estimate(document.text) // 2, most)

    def accept(self, answer: str, document: Document, options: ExtractOptions) -> dict[str, Any]:
        """The entities that the document holds, each once, in the answer's order.

        Raises:
            OutputInvalid: there is no JSON of the schema's form.
        """
        kept: dict[tuple[str, str], dict[str, str]] = {}
        for entity, fault in _judged(decode(answer, Entities), document, options):
            if fault is None:
                text = unicodedata.normalize("NFC", " ".join(entity.text.split()))
                kind = _kind(entity)
                kept.setdefault((_comparable(text), kind), {"text": text, "type": kind})
        return {"entities": list(kept.values())[: options.max_entities]}

    def remark(self, answer: str, document: Document, options: ExtractOptions) -> str:
        """How many entities were dropped, and why."""
        judged = _judged(decode(answer, Entities), document, options)
        faults = Counter(fault for _, fault in judged if fault)
        if not faults:
            return ""
        dropped = ", ".join(f"{number} {fault}" for fault, number in sorted(faults.items()))
        return f"dropped {faults.total()} of {len(judged)} entities: {dropped}"


def _judged(
    answer: Entities, document: Document, options: ExtractOptions
) -> list[tuple[Entity, str | None]]:
    """Each entity with what is wrong with it, if anything."""
    source = _comparable(document.text)

    def fault(entity: Entity) -> str | None:
        if _kind(entity) not in options.types:
            return "of a type not asked for"
        name = _comparable(entity.text)
        return None if name and name in source else "not in the document"

    return [(entity, fault(entity)) for entity in answer.entities]


def _kind(entity: Entity) -> str:
    return " ".join(entity.type.lower().split())


#: Signs that are written in several ways: quotes, dashes, and some that are not seen at all.
_SAME = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\ufeff", None),
    }
)


def _comparable(text: str) -> str:
    """The text without the differences that are none: case, spaces, quotes, dashes, Unicode forms."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.translate(_SAME).split())
