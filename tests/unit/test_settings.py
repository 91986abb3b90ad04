"""Settings: precedence, and one clear line for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmtasks import settings
from llmtasks.errors import ConfigurationError

PROVIDER = """
[[providers]]
name = "open-ai"
kind = "openai"
model = "m"
base_url = "http://localhost:1/v1"
weight = 0.5
"""


def load(tmp_path: Path, text: str = "", **environ: str) -> settings.Settings:
    path = tmp_path / "llmtasks.toml"
    path.write_text(text)
    return settings.load({"LLMTASKS_CONFIG": str(path), **environ}, tmp_path)


def mistake(tmp_path: Path, text: str, **environ: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, text, **environ)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_a_file_everything_has_a_default(tmp_path):
    found = settings.load({"HOME": str(tmp_path)}, tmp_path)
    assert found.embedded
    assert found.retry.default_retry_after_s == 60
    assert found.cache.ttl_s == 3600
    assert found.cache.max_temperature == 0.3
    assert found.dispatch.window_s == 5
    assert found.providers == ()


def test_the_file_of_the_working_directory_is_found(tmp_path):
    (tmp_path / "llmtasks.toml").write_text("[cache]\nttl_s = 7\n")
    assert settings.load({}, tmp_path).cache.ttl_s == 7


def test_the_environment_overrides_the_file_a_provider_by_its_name(tmp_path):
    found = load(
        tmp_path,
        PROVIDER + "[cache]\nttl_s = 7\n",
        LLMTASKS_CACHE__TTL_S="8",
        LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT="0.25",
        LLMTASKS_TASKS__TRANSLATE__PROVIDERS="open-ai",
        LLMTASKS_TASKS__TRANSLATE__TEMPERATURE="0.1",
        LLMTASKS_METRICS__ENABLED="false",
    )
    assert found.cache.ttl_s == 8
    assert found.providers[0].weight == 0.25
    assert found.task("translate") == settings.Task(providers=("open-ai",), temperature=0.1)
    assert found.metrics.enabled is False


def test_a_provider_can_be_given_by_the_environment_alone(tmp_path):
    found = load(
        tmp_path,
        LLMTASKS_PROVIDERS__NEW__KIND="anthropic",
        LLMTASKS_PROVIDERS__NEW__MODEL="m",
        LLMTASKS_PROVIDERS__NEW__API_KEY_ENV="KEY",
    )
    assert found.providers[0].name == "new"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[brokr]\nurl = 'redis://x'", ["brokr is no setting", "broker"]),
        ("[broker]\nurll = 'redis://x'", ["broker.urll is no setting", "url"]),
        ("[broker]\nurl = 'amqp://x'", ["broker.url", "redis://"]),
        ("[broker]\nurl = 'redis://'", ["broker.url", "no host"]),
        ("[database]\nurl = 'mysql://x/y'", ["database.url", "postgresql://"]),
        (PROVIDER + "weigth = 1", ["providers.open-ai.weigth is no setting", "weight"]),
        (PROVIDER.replace("0.5", "'a lot'"), ["providers.open-ai.weight", "float"]),
        (PROVIDER.replace("0.5", "-1"), ["providers.open-ai.weight", ">= 0"]),
        (PROVIDER.replace('"openai"', '"opnai"'), ["providers.open-ai.kind", "opnai"]),
        (PROVIDER.replace('model = "m"', ""), ["providers.open-ai.model is required"]),
        (PROVIDER + PROVIDER, ["providers.open-ai.name", "used twice"]),
        (PROVIDER.replace("base_url", "# base_url"), ["providers.open-ai.api_key_env"]),
        (PROVIDER.replace("http://", "ftp://"), ["providers.open-ai.base_url", "http://"]),
        (
            PROVIDER + "tokens_per_minute = 5\ninput_tokens_per_minute = 5",
            ["providers.open-ai.tokens_per_minute", "contradicts"],
        ),
        (PROVIDER + "requests_per_minute = 0", ["providers.open-ai.requests_per_minute", "> 0"]),
        ("[tasks.translate]\nproviders = ['x']", ["tasks.translate.providers", "'x'"]),
        ("[tasks.translate]\ntemperature = 3", ["temperature", "<= 2"]),
        ("[flower]\nhost = '0.0.0.0'", ["flower.password", "required"]),
        ("[broker]\nurl = 'redis://h:notaport/1'", ["broker.url", "port"]),
        ("[broker]\nurl = 'redis://[::1'", ["broker.url"]),
        ("[broker]\nurl = 'redis://h:1/abc'", ["broker.url", "database number"]),
        ("[redis]\nprefix = ''", ["redis.prefix"]),
        ("[tasks.translate]\ntemprature = 1", ["tasks.translate.temprature is no setting"]),
        (PROVIDER + PROVIDER.replace('"open-ai"', '"Open-AI"'), ["used twice"]),
        (PROVIDER.replace("0.5", "inf"), ["providers.open-ai.weight", "finite"]),
        ("[retry]\nmax_attempts = 0", ["retry.max_attempts", ">= 1"]),
        ("[broker", ["cannot be read as TOML"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_and_key(tmp_path, text, said):
    message = mistake(tmp_path, text)
    assert str(tmp_path / "llmtasks.toml") in message
    for part in said:
        assert part in message


def test_a_mistake_in_the_environment_names_the_variable(tmp_path):
    message = mistake(tmp_path, PROVIDER, LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT="much")
    assert message.startswith("LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT:")
    message = mistake(tmp_path, "", LLMTASKS_TASKS__TRANSLATE__PROVIDERS="[x")
    assert message.startswith("LLMTASKS_TASKS__TRANSLATE__PROVIDERS:")
    message = mistake(tmp_path, "", LLMTASKS_WEIGHT="1")
    assert "LLMTASKS_WEIGHT" in message
    with pytest.raises(ConfigurationError, match="LLMTASKS_CONFIG"):
        settings.load({"LLMTASKS_CONFIG": str(tmp_path / "none.toml")}, tmp_path)


def test_a_key_is_named_by_its_variable_and_must_be_set(tmp_path):
    text = PROVIDER + 'api_key_env = "THE_KEY"'
    (provider,) = load(tmp_path, text).providers
    assert settings.api_key(provider, {"THE_KEY": " s3cret\n"}) == "s3cret"
    with pytest.raises(ConfigurationError, match="THE_KEY"):
        settings.api_key(provider, {})
    assert "s3cret" not in repr(load(tmp_path, text, THE_KEY="s3cret"))


def test_a_socket_path_fits_into_its_address(tmp_path):
    deep = tmp_path / ("d" * 150)
    found = load(tmp_path, LLMTASKS_LOCAL__DATA_DIR=str(deep))
    assert len(str(found.socket_path)) < 108
    assert found.socket_path == load(tmp_path, LLMTASKS_LOCAL__DATA_DIR=str(deep)).socket_path


def test_one_server_speaks_to_celery_and_to_redis_py(tmp_path):
    found = load(tmp_path, "[broker]\nurl = 'redis://h:1/0'\n[redis]\nurl = 'unix:///s?db=2'")
    assert found.redis_url == "unix:///s?db=2"
    assert found.result_url == "redis+socket:///s?virtual_host=2"
    assert load(tmp_path, "[broker]\nurl = 'redis://h:1/0'").redis_url == "redis://h:1/0"
