"""Settings: where values come from, and which wins."""

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


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "llmtasks.toml").write_bytes(b"\xef\xbb\xbf[cache]\r\nttl_s = 7\r\n")
    assert settings.load({}, tmp_path).cache.ttl_s == 7


def test_the_environment_overrides_the_file_a_provider_by_its_name(tmp_path):
    found = load(
        tmp_path,
        PROVIDER + "[cache]\nttl_s = 7\n[tasks.my-type]\ntemperature = 1\n",
        LLMTASKS_CACHE__TTL_S="8",
        LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT="0.25",
        LLMTASKS_TASKS__TRANSLATE__PROVIDERS="open-ai",
        LLMTASKS_TASKS__TRANSLATE__TEMPERATURE="0.1",
        LLMTASKS_TASKS__MY_TYPE__TEMPERATURE="0.5",
        LLMTASKS_METRICS__ENABLED="false",
    )
    assert found.cache.ttl_s == 8
    assert found.providers[0].weight == 0.25
    assert found.task("translate") == settings.Task(providers=("open-ai",), temperature=0.1)
    assert found.task("my-type").temperature == 0.5
    assert found.metrics.enabled is False


def test_an_empty_variable_puts_a_key_back_to_its_default(tmp_path):
    text = PROVIDER + "tokens_per_minute = 5\n[cache]\nttl_s = 7\n"
    found = load(
        tmp_path,
        text,
        LLMTASKS_CACHE__TTL_S="",
        LLMTASKS_PROVIDERS__OPEN_AI__TOKENS_PER_MINUTE=" ",
        LLMTASKS_BROKER__URL="",
    )
    assert found.cache.ttl_s == 3600
    assert found.providers[0].tokens_per_minute is None
    assert found.embedded


def test_a_provider_can_be_given_by_the_environment_alone(tmp_path):
    found = load(
        tmp_path,
        LLMTASKS_PROVIDERS__NEW__KIND="anthropic",
        LLMTASKS_PROVIDERS__NEW__MODEL="m",
        LLMTASKS_PROVIDERS__NEW__API_KEY_ENV="KEY",
    )
    assert found.providers[0].name == "new"


def test_what_kubernetes_says_about_a_service_of_our_name_is_no_setting(tmp_path):
    found = load(
        tmp_path,
        LLMTASKS_FLOWER_SERVICE_HOST="10.0.0.1",
        LLMTASKS_FLOWER_SERVICE_PORT="5555",
        LLMTASKS_FLOWER_PORT="tcp://10.0.0.1:5555",
        LLMTASKS_FLOWER_PORT_5555_TCP_ADDR="10.0.0.1",
        LLMTASKS_SERVICE_HOST="10.0.0.2",
        LLMTASKS_PORT="tcp://10.0.0.2:80",
    )
    assert found == settings.Settings()


# --- assumed from the keys in the environment ----------------------------------------------------


def test_a_key_in_the_environment_is_a_provider_with_careful_limits(tmp_path):
    (openai,) = settings.load({"OPENAI_API_KEY": "k"}, tmp_path).providers
    assert (openai.name, openai.kind, openai.model) == ("openai", "openai", "gpt-4o-mini")
    assert openai.api_key_env == "OPENAI_API_KEY"
    assert openai.base_url is None
    assert (openai.requests_per_minute, openai.tokens_per_minute) == (60, 60_000)
    (anthropic,) = settings.load(
        {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": " "}, tmp_path
    ).providers
    assert (anthropic.name, anthropic.model) == ("anthropic", "claude-haiku-4-5")
    assert anthropic.input_tokens_per_minute == 30_000
    assert anthropic.output_tokens_per_minute == 8_000


def test_of_two_keys_one_vendor_alone_gets_documents(tmp_path):
    both = {"ANTHROPIC_API_KEY": "k", "OPENAI_API_KEY": "k"}
    assert [p.name for p in settings.load(both, tmp_path).providers] == ["openai"]
    assert settings.origin(both, tmp_path).assumed == {"openai": "OPENAI_API_KEY"}


def test_an_assumed_provider_listens_where_its_vendors_variable_says_and_can_be_overridden(
    tmp_path,
):
    environ = {
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": "http://localhost:1/v1",
        "LLMTASKS_PROVIDERS__OPENAI__MODEL": "gpt-4o",
        "LLMTASKS_PROVIDERS__OPENAI__TOKENS_PER_MINUTE": "",
    }
    (provider,) = settings.load(environ, tmp_path).providers
    assert provider.base_url == "http://localhost:1/v1"
    assert provider.model == "gpt-4o"
    assert provider.tokens_per_minute is None
    found = settings.origin(environ, tmp_path)
    assert found.overridden["providers.openai.base_url"] == "OPENAI_BASE_URL"
    assert found.overridden["providers.openai.model"] == "LLMTASKS_PROVIDERS__OPENAI__MODEL"


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        (PROVIDER, {}),
        ("providers = []", {}),
        (
            "",
            {
                "LLMTASKS_PROVIDERS__OWN__KIND": "openai",
                "LLMTASKS_PROVIDERS__OWN__MODEL": "m",
                "LLMTASKS_PROVIDERS__OWN__BASE_URL": "http://localhost:1",
            },
        ),
    ],
)
def test_nothing_is_assumed_where_providers_are_configured(tmp_path, text, environ):
    found = load(tmp_path, text, OPENAI_API_KEY="k", **environ)
    assert "openai" not in [provider.name for provider in found.providers]


# --- where it came from ---------------------------------------------------------------------------


def test_the_origin_names_file_and_variables(tmp_path):
    (tmp_path / "llmtasks.toml").write_text(PROVIDER)
    environ = {"LLMTASKS_RETRY__MAX_ATTEMPTS": "3", "LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT": "1"}
    found = settings.origin(environ, tmp_path)
    assert found.path == tmp_path / "llmtasks.toml"
    assert found.overridden == {
        "retry.max_attempts": "LLMTASKS_RETRY__MAX_ATTEMPTS",
        "providers.open-ai.weight": "LLMTASKS_PROVIDERS__OPEN_AI__WEIGHT",
    }
    assert found.assumed == {}
    assert found.where("retry.max_attempts") == "LLMTASKS_RETRY__MAX_ATTEMPTS"
    assert found.where("retry.base_s") == str(tmp_path / "llmtasks.toml")
    assert settings.origin({"HOME": str(tmp_path)}, tmp_path / "nowhere").path is None


# --- keys, passwords, sockets -----------------------------------------------------------------------


def test_a_key_is_named_by_its_variable_and_must_be_set(tmp_path):
    text = PROVIDER + 'api_key_env = "THE_KEY"'
    (provider,) = load(tmp_path, text).providers
    assert settings.api_key(provider, {"THE_KEY": " s3cret\n"}) == "s3cret"
    with pytest.raises(ConfigurationError, match="THE_KEY is not set"):
        settings.api_key(provider, {})
    with pytest.raises(ConfigurationError, match="THE_KEY is blank"):
        settings.api_key(provider, {"THE_KEY": " "})


def test_settings_can_be_shown_to_anybody(tmp_path):
    found = load(
        tmp_path,
        PROVIDER.replace("http://", "http://user:s3cret@") + 'api_key_env = "THE_KEY"',
        THE_KEY="s3cret",
        LLMTASKS_BROKER__URL="redis://:s3cret@h:1/0?password=s3cret",
        LLMTASKS_REDIS__URL="redis://u:s3cret@h:1/1",
        LLMTASKS_DATABASE__URL="postgresql://u:s3cret@h/d",
        LLMTASKS_FLOWER__PASSWORD="s3cret",
    )
    from rich.pretty import pretty_repr

    for shown in (repr(found), str(found), f"{found.flower}", pretty_repr(found)):
        assert "s3cret" not in shown
    assert "postgresql://h/d" in repr(found)


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


def test_beside_a_cluster_celery_s_results_are_where_its_messages_are(tmp_path):
    cluster = "[redis]\nurl = 'redis://c:1'\ncluster = true"
    found = load(tmp_path, f"[broker]\nurl = 'redis://h:1/3'\n{cluster}")
    assert (found.redis_url, found.result_url) == ("redis://c:1", "redis://h:1/3")
    embedded = load(tmp_path, cluster)
    assert embedded.result_url == f"redis+socket://{embedded.socket_path}?virtual_host=1"
