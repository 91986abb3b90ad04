"""What a task type is, and what it works with.

A task type turns one document into one output. Most are a single question: they name their options,
ship a prompt beside their module, and say in `accept` what a good answer is. `run` does the rest:

    document ──► prompt with the document as delimited data ──► ask ──► accept ──► output
                                                       ▲                 │ OutputInvalid, once
                                                       └── the error ◄───┘

Nothing is ever cut to fit: what is too long raises `DocumentTooLarge` or `OutputTruncated`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from llmtasks.errors import (
    ConfigurationError,
    DocumentTooLarge,
    InvalidDocument,
    OutputInvalid,
    OutputTruncated,
    RequestRejected,
)
from llmtasks.messages import Request
from llmtasks.text import language

#: Tokens of the longest answer asked for in one piece: what the smaller of the common models can write.
LONGEST_ANSWER = 16_384

#: An answer cut by its limit is asked for once more with this many times the room.
_MORE_ROOM = 3


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of the options of a task type. Values are checked and normalised by `__post_init__`."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a task type sees of a document."""

    document_id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A loaded prompt file. `sha256` names its wording: a result made with another one is another result."""

    version: str
    system: str
    template: str
    sha256: str


T = TypeVar("T")


class Terms(Protocol):
    """What every question of a task type is made with."""

    @property
    def prompt(self) -> Prompt:
        """The prompt of this task type, loaded."""

    @property
    def temperature(self) -> float:
        """The sampling temperature of the settings."""

    @property
    def max_output_tokens(self) -> int | None:
        """The answer limit of the settings in tokens; None: the task type's own estimate."""


class TaskContext(Terms, Protocol):
    """What a task type may do to the outside."""

    def ask(self, request: Request, accept: Callable[[str], T]) -> T:
        """Ask a model for a whole answer; what `accept` makes of its text. Blocks.

        `accept` runs on this thread. What it refuses is paid, and not kept for others that ask the same.

        Raises:
            OutputTruncated: the answer was cut by its limit.
            OutputRefused: the model declined.
            OutputInvalid: `accept` refused the answer.
        """

    def report(self, text: str) -> None:
        """Tell the watching user where the work stands. Never document text."""


O = TypeVar("O", bound=Options)  # noqa: E741 - the usual one-letter name of a type variable


class TaskType(ABC, Generic[O]):
    """One kind of work on documents. Instances are stateless and shared between threads.

    `name` is also the queue's and the prompt file's name; `options` the struct of its options;
    `placeholders` what its prompt file may write as `{{…}}`, besides `{{document}}`.
    """

    name: str
    options: type[O]
    placeholders: frozenset[str] = frozenset()

    @property
    def prompt_file(self) -> Path:
        """The shipped prompt: `<name>.prompt.md` beside the module."""
        return Path(inspect.getfile(type(self))).with_name(f"{self.name}.prompt.md")

    def output_schema(self, options: O) -> Mapping[str, Any] | None:  # noqa: ARG002 - for subclasses
        """The JSON Schema of the answer, in the strict form of `strict_schema`; None for plain text."""
        return None

    def values(self, options: O) -> Mapping[str, str]:  # noqa: ARG002 - for subclasses
        """What the placeholders stand for."""
        return {}

    @abstractmethod
    def max_output_tokens(self, document: Document, options: O) -> int:
        """Tokens the first question allows for its answer.

        Providers count this against the quota before the answer exists: as little as an honest
        answer surely needs. A cut answer is asked for again with more room.
        """

    def expected_output_tokens(self, document: Document, options: O) -> int:
        """Tokens an answer is likely to have, for estimates: half the limit, unless one knows better."""
        return self.max_output_tokens(document, options) // 2

    @abstractmethod
    def accept(self, answer: str, document: Document, options: O) -> Any:
        """The output in a good answer. Pure: the same answer may be judged again, by a job that reuses it.

        Raises:
            OutputInvalid: it is not one; the message says why in words the model can act on,
                and holds no text of the document.
        """

    def remark(self, answer: str, document: Document, options: O) -> str:  # noqa: ARG002 - for subclasses
        """What the watching user should know about an accepted answer; mostly nothing."""
        return ""

    def request(self, document: Document, options: O, terms: Terms) -> Request:
        """The one question of this task type."""
        values = dict(self.values(options))
        return Request(
            system=_render(terms.prompt.system, values),
            prompt=_render(terms.prompt.template, values | {"document": delimited(document.text)}),
            max_output_tokens=terms.max_output_tokens or self.max_output_tokens(document, options),
            temperature=terms.temperature,
            output_schema=self.output_schema(options),
            schema_name=self.name,
        )

    def run(self, document: Document, options: O, context: TaskContext) -> Any:
        """Do the work; the output is JSON-able.

        Raises:
            InvalidDocument: there is no text.
            DocumentTooLarge: its answer would not fit into one piece.
            OutputTruncated, OutputRefused, OutputInvalid: no usable answer, also not to the second question.
        """
        if not document.text.strip():
            raise InvalidDocument(f"document {document.document_id!r} is blank")
        request = self.request(document, options, context)
        try:
            return self._answered(request, document, options, context)
        except OutputInvalid as error:
            context.report(f"{self.name}: answer not usable ({error}), asking once more")
            corrected = _corrected(request, error)
        return self._answered(corrected, document, options, context)

    def _answered(
        self, request: Request, document: Document, options: O, context: TaskContext
    ) -> Any:
        def accept(text: str) -> tuple[str, Any]:
            answer = _plain(text, document)
            return answer, self.accept(answer, document, options)

        answer, output = _ask(request, accept, context)
        if remark := self.remark(answer, document, options):
            context.report(f"{self.name}: {remark}")
        return output


def _ask(request: Request, accept: Callable[[str], T], context: TaskContext) -> T:
    """A cut answer is asked for once more with more room, unless the user set the limit."""
    try:
        return context.ask(request, accept)
    except OutputTruncated as cut:
        room = min(_MORE_ROOM * request.max_output_tokens, LONGEST_ANSWER)
        if context.max_output_tokens is not None or room <= request.max_output_tokens:
            raise
        context.report(f"{request.schema_name}: answer cut, asking once more with more room")
        try:
            return context.ask(dataclasses.replace(request, max_output_tokens=room), accept)
        except (DocumentTooLarge, RequestRejected):
            raise cut from None  # the model has no more room to give: the cut is what happened


def _corrected(request: Request, error: OutputInvalid) -> Request:
    """The same question with the complaint about the last answer; not with that answer, which may be long."""
    complaint = f"Your last answer to this could not be used: {error}. Answer again, correctly."
    return dataclasses.replace(request, prompt=f"{request.prompt}\n\n{complaint}")


# --- the document as data -----------------------------------------------------------------------


def delimited(text: str) -> str:
    """The text between tags that it cannot close: their name is derived from the text, and not in it.

    The same text always gives the same tags, so that the same question stays the same.
    """
    tag = _tag(text)
    return f"<{tag}>\n{text}\n</{tag}>"


def _tag(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
    lowered = text.lower()
    while (tag := f"document-{digest.hexdigest()[:8]}") in lowered:
        digest = hashlib.sha256(digest.digest())
    return tag


#: Our tags, also misspelt as small models write them.
_TAGS = re.compile(r"\n?</?document-[0-9a-f]*>\n?")
_THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)


def _plain(answer: str, document: Document) -> str:
    """The answer without what no output may hold: a model's leading thoughts, our own tags, NUL."""
    if not document.text.lstrip().startswith("<think>"):
        answer = _THOUGHTS.sub("", answer, count=1)
    source = document.text
    answer = _TAGS.sub(lambda tag: tag[0] if tag[0].strip() in source else "\n", answer)
    return answer.replace("\x00", "").strip()


# --- prompts ------------------------------------------------------------------------------------

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---\n(.*)\Z", re.DOTALL | re.MULTILINE)
_VERSION = re.compile(r"^version:[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_SECTION = re.compile(r"^# (system|user)[ \t]*\n", re.MULTILINE)


def load_prompt(task_type: TaskType[Any], directory: str | None = None) -> Prompt:
    """The prompt of a task type: the file in `directory` (`[prompts] dir`) if there, else the shipped one.

    Raises:
        ConfigurationError: names the file and what is wrong in it.
    """
    path = task_type.prompt_file
    if directory is not None:
        folder = Path(directory).expanduser()
        if not folder.is_dir():
            raise ConfigurationError(f"prompts.dir: there is no directory {folder}")
        if (folder / path.name).is_file():
            path = folder / path.name
    try:
        source = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigurationError(
            f"task type {task_type.name}: its package ships no prompt: there is no file {path}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    try:
        return parse_prompt(source, task_type.placeholders)
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def parse_prompt(source: str, placeholders: frozenset[str]) -> Prompt:
    """A prompt file's content: front matter with `version`, then the sections `# system` and `# user`.

    Raises:
        ValueError: what is missing or unknown.
    """
    found = _FRONT_MATTER.match(source.replace("\r\n", "\n"))
    if not found:
        raise ValueError("must begin with front matter: a line ---, version: N, a line ---")
    front, body = found.groups()
    version = _VERSION.search(front)
    if not version:
        raise ValueError("the front matter has no version")
    before, *parts = _SECTION.split(body)
    if before.strip():
        raise ValueError("there is text before the section # system")
    if sorted(parts[::2]) != ["system", "user"]:
        raise ValueError("must have one section # system and one section # user")
    sections = {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}
    _check_placeholders(sections["system"], placeholders, "# system")
    _check_placeholders(sections["user"], placeholders | {"document"}, "# user")
    if "document" not in _PLACEHOLDER.findall(sections["user"]):
        raise ValueError("{{document}} is missing in the section # user")
    wording = json.dumps([version[1], sections["system"], sections["user"]])
    return Prompt(
        version=version[1],
        system=sections["system"],
        template=sections["user"],
        sha256=hashlib.sha256(wording.encode()).hexdigest(),
    )


def _check_placeholders(text: str, allowed: frozenset[str], where: str) -> None:
    for name in _PLACEHOLDER.findall(text):
        if name not in allowed:
            known = ", ".join(f"{{{{{one}}}}}" for one in sorted(allowed)) or "none"
            raise ValueError(
                f"{{{{{name}}}}} is no placeholder in the section {where}; known there: {known}"
            )


def _render(template: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders in one pass: what a value holds is never looked at again."""
    return _PLACEHOLDER.sub(lambda found: values[found[1]], template)


def language_code(option: str, value: str) -> str:
    """The normalised code of a language option.

    Raises:
        ValueError: names the option; msgspec makes an `InvalidOption` of it.
    """
    try:
        return language.normalise(value)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


# --- schemas and answers ------------------------------------------------------------------------


def strict_schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """The JSON Schema of a struct as providers' strict modes want it.

    The root is an object in place, references are resolved, every field is required and nothing
    else is allowed.
    """
    schema = msgspec.json.schema(struct)
    defs = schema.pop("$defs", {})

    def inline(node: Any) -> Any:
        if isinstance(node, list):
            return [inline(one) for one in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(defs[node["$ref"].rpartition("/")[2]])
        plain = {key: inline(value) for key, value in node.items() if key != "title"}
        if plain.get("type") == "object":
            plain["required"] = list(plain.get("properties", {}))
            plain["additionalProperties"] = False
        return plain

    result: dict[str, Any] = inline(schema)
    return result


_FENCED = re.compile(r"```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
#: Opening braces that are tried as the beginning of the object: broken JSON must not cost minutes.
_MOST_BRACES = 50
S = TypeVar("S", bound=msgspec.Struct)


def decode(answer: str, struct: type[S]) -> S:
    """The first JSON object in the answer that has the struct's form; fences and prose around it are allowed.

    Raises:
        OutputInvalid: there is none; says what is wrong with the first one.
    """
    complaint = ""
    for candidate in _json_candidates(answer):
        try:
            return msgspec.json.decode(candidate, type=struct)
        except msgspec.ValidationError as error:
            complaint = complaint or f"the JSON does not follow the schema: {error}"
        except (msgspec.DecodeError, UnicodeError) as error:
            complaint = complaint or f"it is not valid JSON: {error}"
        except RecursionError:
            complaint = complaint or "the JSON is nested too deeply"
    raise OutputInvalid(complaint or "it holds no JSON object")


def _json_candidates(answer: str) -> list[str]:
    """The answer itself, what stands in fences, and each object that begins at a brace of the top level."""
    candidates = [answer.strip(), *(found.strip() for found in _FENCED.findall(answer))]
    decoder = json.JSONDecoder()
    start = answer.find("{")
    for _ in range(_MOST_BRACES):
        if start < 0:
            break
        try:
            _, end = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            candidates.append(answer[start:end])
        start = answer.find("{", end)
    return [one for one in candidates if one]


def without_wrapping(answer: str, preamble: re.Pattern[str], document: Document) -> str:
    """The answer without a fence around all of it and without a preamble, where the document has none."""
    answer = answer.strip()
    whole = _FENCED.fullmatch(answer)
    if whole and not document.text.lstrip().startswith("```"):
        answer = whole[1].strip()
    found = preamble.match(answer)
    if found and not preamble.match(document.text.lstrip()):
        answer = answer[found.end() :].strip() or answer
    return answer
