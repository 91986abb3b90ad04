"""What a configured value must be, in a user's words: for the line about a wrong one, and for the page that
lists them all. Knows types, and no setting by name.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import inspect

#: `Meta(extra=SECRET)`: the value is never quoted.
SECRET: Mapping[str, Any] = {"secret": True}

#: What the vendors' keys begin with.
_KEY = re.compile(r"\s*(Bearer |sk[-_]|gsk_|hf_|xai-|AIza|eyJ|AKIA)")
#: Letters and digits in both cases, as long as this: no name of a variable.
_SHORTEST_KEY = 20
_SENSIBLE = 1_000_000
#: Characters of a wrong text that are quoted.
_QUOTED = 40
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Fault:
    """The dotted key of a wrong value, and what is wrong with it and allowed."""

    key: str
    says: str


def first_fault(value: object, hint: Any, key: str = "") -> Fault | None:
    """The first wrong value in data that a struct is to be made of; None when all are right."""
    return next(_faults(value, hint, key), None)


def allowed(hint: Any, value: object = None) -> str:
    """What a value of this type must be, as in "a number greater than 0".

    Bounds that no sensible value comes near are left out, unless this one is beyond them.
    """
    if typing.get_origin(hint) is typing.Literal:  # in the order of its definition
        return f"one of {', '.join(typing.get_args(hint))}"
    size = value if isinstance(value, int | float) else 0
    return _allowed(inspect.type_info(hint), max(_SENSIBLE, size))


def parsed(text: str, hint: Any) -> Any:
    """A value given as text, in the form of its type; the text itself where it has not that form."""
    kind = _bare(inspect.type_info(hint))
    if isinstance(kind, inspect.VarTupleType):
        return _list(text)
    if isinstance(kind, inspect.IntType | inspect.FloatType | inspect.BoolType):
        try:
            return msgspec.convert(text.strip(), hint, strict=False)
        except msgspec.ValidationError:
            return text
    return text


def looks_like_a_key(text: str) -> bool:
    """Whether somebody wrote the key itself where its environment variable is to be named."""
    mixed = re.search(r"[a-z]", text) and re.search(r"[A-Z]", text) and re.search(r"\d", text)
    return bool(_KEY.match(text) or (len(text) >= _SHORTEST_KEY and mixed))


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """`; did you mean retry?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(word.lower(), [str(one) for one in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _faults(value: object, hint: Any, key: str) -> Iterator[Fault]:
    kind = _bare(inspect.type_info(hint))
    if isinstance(kind, inspect.StructType):
        yield from _section_faults(value, kind, key)
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        item = typing.get_args(hint)[1]
        for name, one in value.items():
            if name in item.__struct_fields__ and not isinstance(one, dict):
                yield Fault(_joined(key, name), f"belongs below a name: [{key}.NAME]")
            yield from _faults(one, item, _joined(key, str(name)))
    elif _lists_sections(kind):
        yield from _list_faults(value, typing.get_args(hint)[0], key)
    else:
        try:
            msgspec.convert(value, hint)
        except msgspec.ValidationError:
            yield Fault(key, f"must be {allowed(hint, value)}{_instead(value, hint)}")


def _section_faults(value: object, kind: inspect.StructType, key: str) -> Iterator[Fault]:
    if not isinstance(value, dict):
        yield Fault(key, f"must be a section [{key}], not {_got(value, secret=True)}")
        return
    hints = typing.get_type_hints(kind.cls, include_extras=True)
    for name in value:
        if name not in hints:
            what = "setting" if key else "section"
            hint = did_you_mean(name, hints) or f"; allowed here: {', '.join(hints)}"
            yield Fault(_joined(key, str(name)), f"is no {what}{hint}")
    for field in kind.fields:
        if field.name in value:
            yield from _faults(value[field.name], hints[field.name], _joined(key, field.name))
        elif field.required:
            yield Fault(
                _joined(key, field.name), f"is required; it must be {allowed(hints[field.name])}"
            )


def _list_faults(value: object, hint: Any, key: str) -> Iterator[Fault]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        got = f"[{key}]" if isinstance(value, dict) else _got(value, secret=True)
        yield Fault(key, f"must be sections [[{key}]], one for each, not {got}")
        return
    for number, one in enumerate(value, start=1):
        yield from _faults(one, hint, _joined(key, item_name(one, number)))


def item_name(item: Mapping[str, object], number: int) -> str:
    """How a section of a list is called: by its name where it has a fair one."""
    name = item.get("name")
    return name if isinstance(name, str) and _NAME.fullmatch(name) else f"#{number}"


def _joined(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _bare(kind: inspect.Type) -> inspect.Type:
    """The type itself: without None, and without what is said about it."""
    if isinstance(kind, inspect.Metadata):
        return _bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        return _bare(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
    return kind


def _lists_sections(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.VarTupleType) and isinstance(kind.item_type, inspect.StructType)


def _notes(kind: inspect.Type) -> inspect.Metadata | None:
    """What is said about a type beyond its range, also about an optional one."""
    if isinstance(kind, inspect.UnionType):
        return next(filter(None, map(_notes, kind.types)), None)
    return kind if isinstance(kind, inspect.Metadata) else None


def _is_secret(hint: Any) -> bool:
    notes = _notes(inspect.type_info(hint))
    return bool(notes and (notes.extra or {}).get("secret"))


def _allowed(kind: inspect.Type, sensible: float) -> str:
    notes = _notes(kind)
    if notes and notes.extra_json_schema and "description" in notes.extra_json_schema:
        return str(notes.extra_json_schema["description"])
    match _bare(kind):
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() as number:
            return f"a whole number{_range(number, sensible)}"
        case inspect.FloatType() as number:
            return f"a number{_range(number, sensible)}"
        case inspect.StrType(min_length=least):
            return "a text that is not empty" if least else "a text"
        case inspect.VarTupleType():
            return "a list of texts"
    return "a section for each name"


def _range(number: inspect.IntType | inspect.FloatType, sensible: float) -> str:
    low, most = number.ge, number.le
    if most is not None and most > sensible:
        most = None
    if low is not None and most is not None:
        return f" from {_plain(low)} to {_plain(most)}"
    said = []
    if number.gt is not None:
        said.append(f" greater than {_plain(number.gt)}")
    if low is not None:
        said.append(f" of {_plain(low)} or more")
    if most is not None:
        said.append(f" and at most {_plain(most)}")
    return "".join(said)


def _plain(number: float) -> str:
    return f"{number:,.15g}"


def _instead(value: object, hint: Any) -> str:
    """What stands there, for a value that is not of the type."""
    if isinstance(value, list):
        return " and nothing else"
    in_quotes = isinstance(value, str) and isinstance(parsed(value, hint), int | float)
    return f", not {_got(value, _is_secret(hint))}{'; remove the quotes' if in_quotes else ''}"


def _got(value: object, secret: bool) -> str:  # noqa: FBT001  # private
    match value:
        case bool():
            return str(value).lower()
        case str() if secret or looks_like_a_key(value):
            return "what stands there"
        case str():
            return f"the text {value[:_QUOTED]!r}"
        case int() | float() if secret:
            return "a number"
        case int() | float():
            return f"{value:.6g}" if abs(value) >= 1e15 or isinstance(value, float) else str(value)  # noqa: PLR2004
        case dict():
            return "a section"
        case list():
            return "a list"
    return "a date or time"


def _list(text: str) -> Any:
    """`a,b`, or a JSON array."""
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return [part.strip() for part in text.split(",") if part.strip()]
