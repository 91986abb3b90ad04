"""Makes `docs/configuration.md` of llmtasks/settings.py: `make docs`.

Meanings are the text below each key, types and ranges are what the settings are checked against, so that the
page cannot say anything else than the program does.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from llmtasks import settings, wording

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Configuration

Made of `llmtasks/settings.py` by `make docs`; change the text there.

Nothing has to be configured but a provider, and where `OPENAI_API_KEY` or `ANTHROPIC_API_KEY` is set not even
that. Everything else has a default that works on one machine.

## Where values come from

The first of these that gives a value has it:

1. the environment, as `LLMTASKS_SECTION__KEY`;
2. one file, the first that is there: the one that `LLMTASKS_CONFIG` names, `llmtasks.toml` in the working
   directory, `llmtasks.toml` in your configuration directory (on Linux `~/.config/llmtasks`);
3. the default.

`llmtasks doctor` says which file was read and what was overridden. Something wrong in any of them is one line
that says where it stands, which key, what is wrong and what is allowed, and exit code 2, before anything
starts. A file is TOML in UTF-8; relative paths in it are relative to the working directory.

**The environment.** Section and key in capitals, with two underscores between:
`LLMTASKS_RETRY__MAX_ATTEMPTS=3`. A provider is addressed by its name, with `_` for all other signs than
letters and digits: `LLMTASKS_PROVIDERS__OPENAI__WEIGHT=0.5`. A new one is defined by at least its kind and
its model. A task type likewise: `LLMTASKS_TASKS__TRANSLATE__PROVIDERS=openai,local`. Lists are separated by
commas. An empty value puts a key back to its default. A variable that begins with `LLMTASKS_` and is no
setting is an error.

**Keys.** Only the *name* of a key's environment variable is ever configured (`api_key_env`). Passwords in
URLs are better given in the environment; they are never shown.

**Without any provider**, one is assumed from the keys in the environment, with limits not above those of
the vendors' lowest paid tiers:

{assumed}

When both keys are set only the first is used, so that no document goes to a second vendor unasked. Values of
the assumed provider are overridden like any other: `LLMTASKS_PROVIDERS__OPENAI__MODEL=gpt-4o`.
`providers = []` in the file assumes none.

## A complete example

```toml
{example}```"""

EXAMPLE = """\
[broker]
url = "redis://redis:6379/0"

[redis]
url = "redis://redis:6379/1"

[database]
url = "postgresql://llmtasks@postgres/llmtasks"    # the password: PGPASSWORD

[[providers]]
name = "openai"
kind = "openai"
model = "gpt-4o-mini"
api_key_env = "OPENAI_API_KEY"
weight = 0.7
requests_per_minute = 500
tokens_per_minute = 200000

[[providers]]
name = "anthropic"
kind = "anthropic"
model = "claude-haiku-4-5"
api_key_env = "ANTHROPIC_API_KEY"
weight = 0.3
requests_per_minute = 50
input_tokens_per_minute = 50000
output_tokens_per_minute = 10000

[[providers]]
name = "local"
kind = "openai"
model = "qwen3-4b"
base_url = "http://gpu:8000/v1"                    # vLLM; no key
weight = 0                                         # a standby
max_concurrency = 16
context_window = 32768

[tasks.translate]
providers = ["openai", "anthropic"]

[worker]
concurrency = 64

[metrics]
host = "0.0.0.0"                                   # LLMTASKS_METRICS__PASSWORD is set

[flower]
host = "0.0.0.0"                                   # LLMTASKS_FLOWER__PASSWORD is set
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD.format(assumed=_assumed(), example=EXAMPLE)]
    for title, struct, variable in sections():
        parts += ["", f"## {title}", "", _text(inspect.getdoc(struct) or ""), ""]
        parts += ["| Key | Value | Default | Environment |", "|---|---|---|---|"]
        meanings = docstrings(struct)
        for key, hint, default in keys(struct):
            # A provider is addressed by its name, which is therefore the one value that cannot be overridden.
            form = "" if key == "name" else f"`{variable}__{key.upper()}`"
            parts.append(f"| `{key}` | {_cell(wording.allowed(hint))} | {default} | {form} |")
        parts.append("")
        parts += [f"- **`{key}`**: {_text(meanings[key])}" for key, _, _ in keys(struct)]
    return "\n".join(parts) + "\n"


def keys(struct: type[msgspec.Struct]) -> Iterator[tuple[str, Any, str]]:
    """Each key of a section, with its type and its default in words."""
    hints = typing.get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        default = "required" if field.required else _default(field.default)
        yield field.name, hints[field.name], default


def docstrings(struct: type[msgspec.Struct]) -> Mapping[str, str]:
    """The text below each key that has one."""
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(settings)).body
        if isinstance(node, ast.ClassDef) and node.name == struct.__name__
    )
    found = {}
    for node, following in itertools.pairwise(body):
        match node, following:
            case (
                ast.AnnAssign(target=ast.Name(id=key)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[key] = text
    return found


def sections() -> Iterator[tuple[str, type[msgspec.Struct], str]]:
    """Each section with its title and the beginning of its environment variables."""
    for name, hint in typing.get_type_hints(settings.Settings).items():
        if name == "providers":
            yield "[[providers]]", settings.Provider, "LLMTASKS_PROVIDERS__<NAME>"
        elif name == "tasks":
            yield "[tasks.<type>]", settings.Task, "LLMTASKS_TASKS__<TYPE>"
        else:
            yield f"[{name}]", hint, f"LLMTASKS_{name.upper()}"


def _assumed() -> str:
    lines = ["| Variable | Provider |", "|---|---|"]
    for variable, provider in settings.ASSUMED.items():
        values = ", ".join(f"`{key} = {_toml(value)}`" for key, value in provider.items())
        address = f"{provider['name'].upper()}_BASE_URL"
        lines.append(f"| `{variable}` | {values}; `base_url` from `{address}`, if set |")
    return "\n".join(lines)


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _default(value: object) -> str:
    if value is None:
        return "none"
    return f"`{msgspec.json.encode(value).decode()}`"


def _text(docstring: str) -> str:
    return " ".join(docstring.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
