"""The answer to a question: deterministic, different per document, never longer than allowed.

Without a schema it is a short "summary": the document's first sentences and, in brackets, the first
digits of the question's digest, so that an answer can be matched to its question. When the
instructions ask for a translation it is the document itself, marked with the language. With a
schema it is a small instance of it whose strings are words of the document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from llmtasks.simulator.protocol import Answer, Ask, Finish, count_tokens

#: Documents are often delimited by a tag of any name, e.g. <document id="1"> ... </document>.
_OPENING: Final = re.compile(r"<([A-Za-z][\w-]*)(?:\s[^<>]*)?>")
_SENTENCE: Final = re.compile(r"\S.*?(?:[.!?](?=\s|$)|$)", re.DOTALL)
_WORD: Final = re.compile(r"[^\W\d_][\w'-]{3,}")
_TRANSLATION: Final = re.compile(
    r"\btranslat\w*\b[^.\n]{0,80}?\b(?:in)?to\s+(?:the\s+)?[`\"'*<{(]*([A-Za-z][\w-]*)",
    re.IGNORECASE,
)
_MARKDOWN_START: Final = re.compile(r"\s*(?:#{1,6}\s+|[-*+]\s+|>\s+|\d+[.)]\s+)?")

#: Characters of the first sentences; enough to tell documents apart.
_SUMMARY_CHARS: Final = 240
#: Tags that are tried: a document in HTML without delimiters has thousands.
_TAGS: Final = 8
#: Without delimiters, an instruction is looked for in so many first characters of the prompt.
_INSTRUCTION_CHARS: Final = 80
#: How much of a document is looked at for words: the start is enough, and stays fast.
_WORDS_WITHIN: Final = 4000
#: Words of a document that answers draw from.
_WORDS: Final = 64
#: A schema that refers to itself is cut here.
_MAX_DEPTH: Final = 12

_FORMATS: Final = {
    "date": "2024-01-31",
    "date-time": "2024-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}
_REFUSAL: Final = "I can't help with that."


def answer(ask: Ask, chars_per_token: float, kind: str | None = None) -> Answer:
    """The answer to `ask`; `kind` is the fault inside the answer, if one strikes."""
    if kind == "refusal":
        return _of(_REFUSAL, "refusal", ask, chars_per_token)
    if kind == "content_filter":
        return _of("", "content_filter", ask, chars_per_token)
    if kind == "bad_answer":
        return _of(_bad(ask), "stop", ask, chars_per_token)
    text = _content(ask)
    if kind == "length":
        return _of(text[: len(text) // 2], "length", ask, chars_per_token)
    return _of(text, "stop", ask, chars_per_token)


def _of(text: str, finish: Finish, ask: Ask, chars_per_token: float) -> Answer:
    """The answer, cut where it would exceed the tokens allowed."""
    allowed = int(ask.max_tokens * chars_per_token)
    if len(text) > allowed:
        text, finish = text[:allowed], "length"
    tokens = min(max(1, count_tokens(text, chars_per_token)), ask.max_tokens)
    return Answer(text=text, finish=finish, output_tokens=tokens)


def _bad(ask: Ask) -> str:
    """Content that is not of the schema: for text nothing at all."""
    if ask.schema is None:
        return ""
    return '{"simulated_bad_answer": true}' if ask.tool else '"this is not of the schema"'


def _content(ask: Ask) -> str:
    text = document(ask.prompt)
    if ask.schema is not None:
        return msgspec.json.encode(_Instance(ask, text).of_root()).decode()
    language = target_language(ask.texts)
    if language is not None:
        return marked(text, language)
    return f"{first_sentences(text)} [{ask.digest.hex()[:8]}]"


def document(prompt: str) -> str:
    """The document inside a prompt: what the first tag encloses, else everything."""
    start, end = _document_span(prompt)
    return prompt[start:end].strip()


def _document_span(prompt: str) -> tuple[int, int]:
    for opening in islice(_OPENING.finditer(prompt), _TAGS):
        end = prompt.rfind(f"</{opening[1]}>")
        if end > opening.end():
            return opening.end(), end
    return 0, len(prompt)


def first_sentences(text: str) -> str:
    """One or more whole sentences of the start, at most about 240 characters, in one line."""
    taken = ""
    for sentence in islice(_SENTENCE.finditer(text[: 4 * _SUMMARY_CHARS]), 4):
        longer = f"{taken} {sentence[0]}".strip()
        if taken and len(longer) > _SUMMARY_CHARS:
            break
        taken = longer
    return " ".join(taken[:_SUMMARY_CHARS].split())


def target_language(texts: Sequence[str]) -> str | None:
    """The language that the instructions ask to translate into; None when they do not.

    Instructions are all messages but the last, and what stands before the document in the last.
    """
    prompt = texts[-1]
    before = _document_span(prompt)[0] or _INSTRUCTION_CHARS
    for text in (*texts[:-1], prompt[:before]):
        if "translat" in text.lower():
            found = _TRANSLATION.search(text)
            if found:
                return found[1]
    return None


def marked(text: str, language: str) -> str:
    """The text with the language in brackets, behind a heading's or list's own mark."""
    start = _MARKDOWN_START.match(text)
    at = start.end() if start else 0
    return f"{text[:at]}[{language}] {text[at:]}"


class _Instance:
    """Builds the small instance of one question's schema."""

    def __init__(self, ask: Ask, text: str) -> None:
        self._schema = ask.schema or {}
        self._text = text
        self._language = target_language(ask.texts)
        self._words = _words(text)
        self._next = 0

    def of_root(self) -> Any:
        return self._of(self._schema, "", 0)

    def _of(self, schema: Any, name: str, depth: int) -> Any:
        if not isinstance(schema, Mapping):
            return self._string({}, name)
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][len(self._text) % len(schema["enum"])]
        kind = _type(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, name, depth)
        if kind in ("integer", "number"):
            return _number(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        if kind == "null":
            return None
        return self._string(schema, name)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        """The schema with `$ref`, `allOf`, `anyOf` and `oneOf` followed; the first way is taken."""
        for _ in range(_MAX_DEPTH):
            if "$ref" in schema:
                rest = {key: value for key, value in schema.items() if key != "$ref"}
                schema = {**self._referred(schema["$ref"]), **rest}
            elif schema.get("allOf"):
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                schema = _merged([rest, *(self._resolved(part) for part in schema["allOf"])])
            elif ways := schema.get("anyOf") or schema.get("oneOf"):
                rest = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}
                schema = _merged([rest, _first_not_null(ways)])
            else:
                break
        return schema

    def _referred(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._schema
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                found = found.get(step.replace("~1", "/").replace("~0", "~"), {})
        return found if isinstance(found, Mapping) else {}

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        wanted = properties if depth < _MAX_DEPTH else {}
        names = [*wanted, *(name for name in required if name not in wanted)]
        return {name: self._of(properties.get(name, {}), name, depth + 1) for name in names}

    def _array(self, schema: Mapping[str, Any], name: str, depth: int) -> list[Any]:
        at_least = schema.get("minItems", 0)
        size = max(at_least, 1) if depth < _MAX_DEPTH else at_least
        size = min(size, schema.get("maxItems", size))
        return [self._of(schema.get("items", {}), name, depth + 1) for _ in range(size)]

    def _string(self, schema: Mapping[str, Any], name: str) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = self._wording(name)
        shortest = schema.get("minLength", 0)
        if len(text) < shortest:
            text = (f"{text} {self._text} " * (shortest // max(1, len(text)) + 1))[:shortest]
        return text[: schema.get("maxLength", len(text))]

    def _wording(self, name: str) -> str:
        """Sentences where the name asks for them, otherwise the document's next word."""
        lowered = name.lower()
        if "translat" in lowered:
            return marked(self._text, self._language or "translated")
        if "summar" in lowered or lowered in ("answer", "text", "abstract"):
            return first_sentences(self._text)
        word = self._words[self._next % len(self._words)]
        self._next += 1
        return word


def _words(text: str) -> list[str]:
    """Different words of the document as they stand there, names (capitalised) first."""
    found = (match[0] for match in _WORD.finditer(text[:_WORDS_WITHIN]))
    words = list(dict.fromkeys(islice(found, _WORDS)))
    words.sort(key=lambda word: not word[0].isupper())
    return words or [text.strip()[:20] or "nothing"]


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((one for one in kind if one != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema or "required" in schema else None
    if kind is None:
        kind = "array" if "items" in schema else "string"
    return str(kind)


def _first_not_null(ways: Sequence[Any]) -> Mapping[str, Any]:
    maps = [way for way in ways if isinstance(way, Mapping)]
    return next((way for way in maps if way.get("type") != "null"), maps[0] if maps else {})


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One schema of several that must all hold."""
    merged: dict[str, Any] = {}
    for part in parts:
        properties = {**merged.get("properties", {}), **part.get("properties", {})}
        required = [*merged.get("required", ()), *part.get("required", ())]
        merged |= part
        if properties:
            merged["properties"] = properties
        if required:
            merged["required"] = required
    return merged


def _number(schema: Mapping[str, Any], *, whole: bool) -> float:
    """The smallest allowed number that is not negative, else the largest."""
    step = schema.get("multipleOf", 1 if whole else 0.5)
    low = schema.get("minimum", 0)
    if "exclusiveMinimum" in schema:
        low = max(low, schema["exclusiveMinimum"] + step)
    number = -(-low // step) * step if low else 0
    if "maximum" in schema:
        number = min(number, schema["maximum"])
    if "exclusiveMaximum" in schema and number >= schema["exclusiveMaximum"]:
        number = schema["exclusiveMaximum"] - step
    return int(number) if whole else number
