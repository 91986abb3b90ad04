"""What a worker needs beyond valid settings is missed in one line, before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtasks import checks, settings
from llmtasks.errors import ConfigurationError

PROVIDER = """
[[providers]]
name = "a"
kind = "openai"
model = "m"
base_url = "http://localhost:1/v1"
"""


def check(tmp_path: Path, text: str, **environ: str) -> dict[str, str | None]:
    (tmp_path / "llmtasks.toml").write_text(text)
    environ = {"HOME": str(tmp_path), **environ}
    found = settings.origin(environ, tmp_path)
    return dict(checks.ready(settings.load(environ, tmp_path), found).keys)


def refused(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check(tmp_path, text, **environ)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    return message.replace(str(tmp_path), "DIR")


def test_the_keys_are_given_by_provider(tmp_path, monkeypatch):
    monkeypatch.setenv("THE_KEY", "s3cret")
    keyed = PROVIDER.replace('"a"', '"b"') + 'api_key_env = "THE_KEY"\n'
    assert check(tmp_path, PROVIDER + keyed) == {"a": None, "b": "s3cret"}


def test_the_keys_are_not_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("THE_KEY", "s3cret")
    (tmp_path / "llmtasks.toml").write_text(PROVIDER + 'api_key_env = "THE_KEY"\n')
    found = settings.load({}, tmp_path)
    assert "s3cret" not in repr(checks.ready(found, settings.Origin()))


def test_to_estimate_takes_a_provider_and_neither_a_key_nor_the_users_functions(tmp_path):
    text = PROVIDER + 'api_key_env = "NO_SUCH_KEY"\n[documents]\nsource = "no_such_module:fetch"\n'
    (tmp_path / "llmtasks.toml").write_text(text)
    checks.askable(settings.load({}, tmp_path), settings.Origin())
    with pytest.raises(ConfigurationError, match="providers: none is configured"):
        checks.askable(settings.Settings(), settings.Origin())


def test_a_key_that_is_not_there_is_named_with_the_file(tmp_path, monkeypatch):
    text = PROVIDER + 'api_key_env = "THE_KEY"\n'
    assert refused(tmp_path, text) == (
        "DIR/llmtasks.toml: providers.a.api_key_env: the environment variable THE_KEY is not set;"
        " export it, or remove the provider"
    )
    monkeypatch.setenv("THE_KEY", " ")
    assert "THE_KEY is blank" in refused(tmp_path, text)


def test_no_provider_at_all_says_how_to_give_one(tmp_path):
    said = "export OPENAI_API_KEY or ANTHROPIC_API_KEY, or add a [[providers]] section"
    assert said in refused(tmp_path, "")
    with pytest.raises(ConfigurationError, match=r"^providers: none is configured"):
        checks.ready(settings.Settings(), settings.Origin())


@pytest.mark.parametrize(
    ("text", "environ", "line"),
    [
        (
            "[tasks.sumarize]\ntemperature = 0.1\n",
            {},
            (
                "DIR/llmtasks.toml: tasks.sumarize: is no task type; did you mean summarize? there are:"
                " summarize, extract, translate"
            ),
        ),
        (
            "",
            {"LLMTASKS_TASKS__TRANSLAT__TEMPERATURE": "0.1"},
            (
                "LLMTASKS_TASKS__TRANSLAT__TEMPERATURE: tasks.translat: is no task type; did you mean"
                " translate? there are: summarize, extract, translate"
            ),
        ),
        (
            "[documents]\nsource = 'no_such_module:fetch'\n",
            {},
            (
                "DIR/llmtasks.toml: documents.source: no_such_module:fetch: there is no module"
                " no_such_module; put it beside llmtasks.toml or into the directory the worker is started"
                " in, or install it"
            ),
        ),
        (
            "[prompts]\ndir = '/no/such/folder'\n",
            {},
            "DIR/llmtasks.toml: prompts.dir: there is no directory /no/such/folder",
        ),
    ],
)
def test_what_only_the_installation_can_tell_is_named_like_any_mistake(
    tmp_path, text, environ, line
):
    assert refused(tmp_path, PROVIDER + text, **environ) == line


def test_a_broken_prompt_file_is_named_and_so_is_one_that_no_task_type_reads(tmp_path):
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    text = PROVIDER + f"[prompts]\ndir = '{prompts}'\n"
    (prompts / "sumarize.prompt.md").write_text("---\nversion: 1\n---\n")
    said = refused(tmp_path, text)
    assert "prompts.dir: DIR/prompts/sumarize.prompt.md is the prompt of no task type" in said
    assert "did you mean summarize.prompt.md?" in said
    (prompts / "sumarize.prompt.md").rename(prompts / "summarize.prompt.md")
    assert refused(tmp_path, text).startswith("DIR/prompts/summarize.prompt.md: ")


# --- room for one request ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "context_window",
        "tokens_per_minute",
        "input_tokens_per_minute",
        "output_tokens_per_minute",
    ],
)
def test_a_limit_that_no_request_fits_into_is_named_with_the_number_needed(tmp_path, key):
    said = refused(tmp_path, PROVIDER + f"{key} = 50\n")
    assert said.startswith(f"DIR/llmtasks.toml: providers.a.{key}: 50 is too small for summarize:")
    assert "; raise it, or name other providers in tasks.summarize.providers" in said


def test_the_number_needed_is_enough_and_one_less_is_not(tmp_path):
    """For whichever task type needs most; the number comes from the line, as a user would take it."""
    limit, told = 50, 0
    for _ in range(5):
        try:
            check(tmp_path, PROVIDER + f"tokens_per_minute = {limit}\n")
            break
        except ConfigurationError as error:
            told = int(str(error).partition("needs ")[2].split()[0])
            assert told > limit
            limit = told
    assert limit == told
    assert str(told) in refused(tmp_path, PROVIDER + f"tokens_per_minute = {told - 1}\n")


def test_a_provider_that_a_task_type_does_not_use_may_be_small_for_it(tmp_path):
    large = PROVIDER.replace('"a"', '"b"')
    text = PROVIDER + "output_tokens_per_minute = 100\n" + large
    assert "for extract" in refused(tmp_path, text)
    others = "".join(f"[tasks.{name}]\nproviders = ['b']\n" for name in ("extract", "translate"))
    assert check(tmp_path, text + others) == {"a": None, "b": None}


def test_an_answer_limit_that_leaves_no_room_is_named_itself(tmp_path):
    text = PROVIDER + "context_window = 4096\n[tasks.translate]\nmax_output_tokens = 4096\n"
    said = refused(tmp_path, text)
    assert said.startswith(
        "DIR/llmtasks.toml: tasks.translate.max_output_tokens: 4096 is more than"
        " providers.a.context_window = 4096 has room for"
    )
    named = refused(
        tmp_path,
        PROVIDER + "context_window = 4096\n",
        LLMTASKS_TASKS__TRANSLATE__MAX_OUTPUT_TOKENS="9999",
    )
    assert named.startswith("LLMTASKS_TASKS__TRANSLATE__MAX_OUTPUT_TOKENS: ")


def test_the_assumed_providers_have_room_for_a_page(tmp_path, monkeypatch):
    for variable in settings.ASSUMED:
        monkeypatch.setenv(variable, "k")
        assert check(tmp_path, "", **{variable: "k"})
        monkeypatch.delenv(variable)
