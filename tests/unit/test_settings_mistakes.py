"""Every mistake in a configuration is one line: where it stands, the key, what is wrong, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from llmtasks import settings
from llmtasks.errors import ConfigurationError

PROVIDER = """\
[[providers]]
name = "a"
kind = "openai"
model = "m"
base_url = "http://localhost:1/v1"
weight = 0.5
"""

#: What is wrong, the file, the environment, the line (FILE: the path of the file).
MISTAKES: list[tuple[str, str, Mapping[str, str], str]] = [
    (
        "misspelt section",
        "[brokr]\nurl = 'redis://x'",
        {},
        "FILE: brokr: is no section; did you mean broker?",
    ),
    (
        "misspelt key",
        "[broker]\nurll = 'redis://x'",
        {},
        "FILE: broker.urll: is no setting; did you mean url?",
    ),
    (
        "key of another section",
        "[worker]\nmax_attempts = 3",
        {},
        "FILE: worker.max_attempts: is no setting; max_attempts belongs into [retry]",
    ),
    (
        "key before any section",
        "url = 'redis://x'",
        {},
        (
            "FILE: url: is no section; allowed here: broker, redis, database, local, providers,"
            " tasks, cache, batching, retry, delivery, dispatch, worker, metrics, flower, api,"
            " documents, results, retention, streams, prompts, log"
        ),
    ),
    (
        "misspelt key of a provider",
        PROVIDER + "weigth = 1",
        {},
        "FILE: providers.a.weigth: is no setting; did you mean weight?",
    ),
    (
        "a key itself, unknown key",
        PROVIDER + "api_key = 'sk-s3cret'",
        {},
        "FILE: providers.a.api_key: is no setting; did you mean api_key_env?",
    ),
    (
        "text for number",
        PROVIDER.replace("0.5", "'a lot'"),
        {},
        "FILE: providers.a.weight: must be a number from 0 to 1,000,000, not the text 'a lot'",
    ),
    (
        "number in quotes",
        PROVIDER.replace("0.5", "'0.5'"),
        {},
        (
            "FILE: providers.a.weight: must be a number from 0 to 1,000,000, not the text '0.5';"
            " remove the quotes"
        ),
    ),
    (
        "bool for number",
        "[retry]\nmax_attempts = true",
        {},
        "FILE: retry.max_attempts: must be a whole number of 1 or more, not true",
    ),
    (
        "number for bool",
        "[metrics]\nenabled = 1",
        {},
        "FILE: metrics.enabled: must be true or false, not 1",
    ),
    (
        "fraction for int",
        "[retry]\nmax_attempts = 1.5",
        {},
        "FILE: retry.max_attempts: must be a whole number of 1 or more, not 1.5",
    ),
    (
        "list for section",
        "[[broker]]\nurl = 'redis://x'",
        {},
        "FILE: broker: must be a section [broker], not a list",
    ),
    (
        "text for section",
        "broker = 'redis://:s3cret@x'",
        {},
        "FILE: broker: must be a section [broker], not what stands there",
    ),
    (
        "section for text",
        "[broker.url]\nhost = 'x'",
        {},
        "FILE: broker.url: must be a URL, not a section",
    ),
    (
        "date",
        "[cache]\nttl_s = 2024-01-01",
        {},
        "FILE: cache.ttl_s: must be a whole number of 1 or more, not a date or time",
    ),
    (
        "[providers]",
        PROVIDER.replace("[providers]", "providers"),
        {},
        "FILE: providers: must be sections [[providers]], one for each, not [providers]",
    ),
    (
        "[providers.a]",
        "[providers.a]\nkind = 'openai'",
        {},
        "FILE: providers: must be sections [[providers]], one for each, not [providers]",
    ),
    (
        "providers list of text",
        "providers = ['openai']",
        {},
        "FILE: providers: must be sections [[providers]], one for each, not a list",
    ),
    (
        "negative",
        PROVIDER.replace("0.5", "-1"),
        {},
        "FILE: providers.a.weight: must be a number from 0 to 1,000,000, not -1",
    ),
    (
        "zero",
        PROVIDER + "requests_per_minute = 0",
        {},
        "FILE: providers.a.requests_per_minute: must be a number greater than 0, not 0",
    ),
    (
        "nan",
        PROVIDER.replace("0.5", "nan"),
        {},
        "FILE: providers.a.weight: must be a number from 0 to 1,000,000, not nan",
    ),
    (
        "inf",
        PROVIDER + "tokens_per_minute = inf",
        {},
        (
            "FILE: providers.a.tokens_per_minute: must be a number greater than 0 and at most"
            " 1,000,000,000,000, not inf"
        ),
    ),
    (
        "huge",
        "[worker]\nconcurrency = 99999999999999999999999",
        {},
        "FILE: worker.concurrency: must be a whole number from 1 to 2,000,000,000, not 1e+23",
    ),
    (
        "hugest",
        "[worker]\nconcurrency = " + "9" * 5000,
        {},
        "FILE: holds a number of thousands of digits",
    ),
    (
        "twice",
        PROVIDER + PROVIDER,
        {},
        "FILE: providers.a.name: is used twice; give one another name",
    ),
    (
        "twice in env form",
        PROVIDER.replace('"a"', '"a-b"') + PROVIDER.replace('"a"', '"A_b"'),
        {},
        (
            "FILE: providers.A_b.name: cannot be told from a-b in environment variables; give it"
            " another name"
        ),
    ),
    (
        "bad name",
        PROVIDER.replace('"a', '"a b'),
        {},
        (
            "FILE: providers.#1.name: must be a name of at most 64 letters, digits, _, - and .,"
            " not the text 'a b'"
        ),
    ),
    (
        "unknown kind",
        PROVIDER.replace("pe", "p"),
        {},
        "FILE: providers.a.kind: must be one of openai, anthropic, not the text 'opnai'",
    ),
    (
        "missing model",
        PROVIDER.replace('model = "m"\n', ""),
        {},
        "FILE: providers.a.model: is required; it must be a text that is not empty",
    ),
    (
        "empty model",
        PROVIDER.replace('"m', '"'),
        {},
        "FILE: providers.a.model: must be a text that is not empty, not the text ''",
    ),
    (
        "no key no base_url",
        PROVIDER.replace('m"\n', 'm"\n# '),
        {},
        (
            "FILE: providers.a.api_key_env: is required without a base_url: name the environment"
            " variable that holds the key"
        ),
    ),
    (
        "api_key_env is a key",
        PROVIDER + "api_key_env = 'sk-proj-s3cret'",
        {},
        (
            "FILE: providers.a.api_key_env: must be the name of an environment variable, never"
            " the key itself, not what stands there"
        ),
    ),
    (
        "api_key_env is another key",
        PROVIDER + "api_key_env = 'gsk_s3cret'",
        {},
        (
            "FILE: providers.a.api_key_env: must be the name of an environment variable, never"
            " the key itself, and this looks like one"
        ),
    ),
    (
        "base_url scheme",
        PROVIDER.replace("http://", ""),
        {},
        "FILE: providers.a.base_url: must start with http:// or https://",
    ),
    (
        "base_url ftp",
        PROVIDER.replace('"ht', '"f'),
        {},
        "FILE: providers.a.base_url: must start with http:// or https://",
    ),
    (
        "base_url endpoint",
        PROVIDER.replace("v1", "v1/chat/completions"),
        {},
        "FILE: providers.a.base_url: must end before /chat/completions, which is added to it",
    ),
    (
        "base_url openai",
        PROVIDER.replace("://localhost:1/v1", "s://api.openai.com"),
        {},
        (
            "FILE: providers.a.base_url: must end with /v1 at OpenAI; or remove it, that is the"
            " default"
        ),
    ),
    (
        "base_url port",
        PROVIDER.replace(":1", ":99999"),
        {},
        "FILE: providers.a.base_url: names no host, or no port from 1 to 65535",
    ),
    (
        "base_url blank",
        PROVIDER.replace("al", "al "),
        {},
        "FILE: providers.a.base_url: holds a blank; write it as %20 where it is meant",
    ),
    (
        "broker amqp",
        "[broker]\nurl = 'amqp://u:s3cret@x'",
        {},
        "FILE: broker.url: must start with redis://, rediss:// or redis+socket://",
    ),
    (
        "broker no host",
        "[broker]\nurl = 'redis://'",
        {},
        "FILE: broker.url: names no host, or no port from 1 to 65535",
    ),
    (
        "broker no slashes",
        "[broker]\nurl = 'redis:6379'",
        {},
        "FILE: broker.url: must start with redis://, rediss:// or redis+socket://",
    ),
    (
        "broker port",
        "[broker]\nurl = 'redis://h:port/1'",
        {},
        "FILE: broker.url: names no host, or no port from 1 to 65535",
    ),
    ("broker ipv6", "[broker]\nurl = 'redis://[::1'", {}, "FILE: broker.url: is no URL"),
    (
        "broker db",
        "[broker]\nurl = 'redis://h:1/abc'",
        {},
        "FILE: broker.url: its path must be a database number, as in /0",
    ),
    (
        "broker socket without path",
        "[broker]\nurl = 'redis+socket://'",
        {},
        "FILE: broker.url: must name the socket's path, as in redis+socket:///run/valkey.sock",
    ),
    (
        "broker socket alone",
        "[broker]\nurl = 'redis+socket:///run/v.sock'",
        {},
        "FILE: redis.url: is required with a broker on a socket, as in unix:///PATH?db=1",
    ),
    (
        "redis",
        "[redis]\nurl = 'redis+socket:///x'",
        {},
        "FILE: redis.url: must start with redis://, rediss:// or unix://",
    ),
    (
        "cluster without a url",
        "[broker]\nurl = 'redis://h'\n[redis]\ncluster = true",
        {},
        "FILE: redis.url: is required with redis.cluster: the broker cannot be a cluster",
    ),
    (
        "cluster on a socket",
        "[redis]\nurl = 'unix:///run/v.sock'\ncluster = true",
        {},
        "FILE: redis.url: must start with redis:// or rediss:// where redis.cluster is true",
    ),
    (
        "database of a cluster",
        "[redis]\nurl = 'redis://h/10'",
        {"LLMTASKS_REDIS__CLUSTER": "true"},
        "LLMTASKS_REDIS__CLUSTER: redis.url: must end with /0: a cluster has no other database",
    ),
    (
        "broker in the cluster",
        "[broker]\nurl = 'redis://H/0'\n[redis]\nurl = 'redis://h:6379'\ncluster = true",
        {},
        (
            "FILE: broker.url: is a node of the cluster in redis.url, which cannot carry messages; give"
            " the broker a server of its own, or set redis.cluster to false"
        ),
    ),
    (
        "database mysql",
        "[database]\nurl = 'mysql://u:s3cret@x/y'",
        {},
        ("FILE: database.url: must start with postgresql://, postgresql+psycopg:// or sqlite://"),
    ),
    (
        "database postgres",
        "[database]\nurl = 'postgres://u:s3cret@x/y'",
        {},
        ("FILE: database.url: must start with postgresql://, postgresql+psycopg:// or sqlite://"),
    ),
    (
        "sqlite memory",
        "[database]\nurl = 'sqlite://'",
        {},
        "FILE: database.url: SQLite needs a file that all processes share: sqlite:////PATH",
    ),
    (
        "sqlite two slashes",
        "[database]\nurl = 'sqlite://file.db'",
        {},
        "FILE: database.url: has the file where a host stands; write sqlite:////ABSOLUTE/PATH",
    ),
    (
        "tokens twice",
        PROVIDER + "tokens_per_minute = 5\ninput_tokens_per_minute = 5",
        {},
        (
            "FILE: providers.a.tokens_per_minute: contradicts input_tokens_per_minute and"
            " output_tokens_per_minute; give the one or the others"
        ),
    ),
    (
        "unknown provider of a task",
        PROVIDER + "[tasks.translate]\nproviders = ['b']",
        {},
        "FILE: tasks.translate.providers: no provider is named 'b'; there are: a",
    ),
    (
        "no provider of a task",
        PROVIDER + "[tasks.translate]\nproviders = []",
        {},
        "FILE: tasks.translate.providers: is empty; name one, or remove the key",
    ),
    (
        "text for a list",
        "[tasks.translate]\nproviders = 'a'",
        {},
        "FILE: tasks.translate.providers: must be a list of texts, not the text 'a'",
    ),
    (
        "list of other",
        "[tasks.translate]\nproviders = [1]",
        {},
        "FILE: tasks.translate.providers: must be a list of texts and nothing else",
    ),
    (
        "task key without a type",
        "[tasks]\ntemperature = 1",
        {},
        "FILE: tasks.temperature: belongs below a name: [tasks.NAME]",
    ),
    (
        "temperature",
        "[tasks.translate]\ntemperature = 3",
        {},
        "FILE: tasks.translate.temperature: must be a number from 0 to 2, not 3",
    ),
    (
        "retry order",
        "[retry]\nbase_s = 100",
        {},
        "FILE: retry.base_s: must not be greater than retry.max_s",
    ),
    (
        "flower open",
        "[flower]\nhost = '0.0.0.0'",
        {},
        (
            "FILE: flower.password: is required when flower.host is not loopback; set"
            " LLMTASKS_FLOWER__PASSWORD, or flower.host to 127.0.0.1"
        ),
    ),
    (
        "metrics open",
        "[metrics]\nhost = '::'",
        {},
        (
            "FILE: metrics.password: is required when metrics.host is not loopback; set"
            " LLMTASKS_METRICS__PASSWORD, or metrics.host to 127.0.0.1"
        ),
    ),
    (
        "flower comma",
        "[flower]\npassword = 's3cret,two'",
        {},
        "FILE: flower.password: must be a text without comma, not what stands there",
    ),
    (
        "flower number",
        "[flower]\npassword = 12345678",
        {},
        "FILE: flower.password: must be a text without comma, not a number",
    ),
    (
        "metrics port",
        "[metrics]\nport = -1",
        {},
        "FILE: metrics.port: must be a whole number from 0 to 65,535, not -1",
    ),
    (
        "log level",
        "[log]\nlevel = 'verbose'",
        {},
        "FILE: log.level: must be one of debug, info, warning, error, not the text 'verbose'",
    ),
    (
        "function",
        "[documents]\nsource = 'module.function'",
        {},
        (
            "FILE: documents.source: must be a function, as in package.module:function, not the"
            " text 'module.function'"
        ),
    ),
    (
        "broken toml",
        "[worker]\nconcurrency = 3\n[broker",
        {},
        (
            "FILE: cannot be read as TOML: Expected ']' at the end of a table declaration (at"
            " end of document)"
        ),
    ),
    (
        "toml value",
        "[worker]\nconcurrency = three",
        {},
        "FILE: line 2: cannot be read as TOML: Invalid value",
    ),
    (
        "env: text for number",
        PROVIDER,
        {"LLMTASKS_PROVIDERS__A__WEIGHT": "much"},
        (
            "LLMTASKS_PROVIDERS__A__WEIGHT: providers.a.weight: must be a number from 0 to"
            " 1,000,000, not the text 'much'"
        ),
    ),
    (
        "env: bool",
        "",
        {"LLMTASKS_METRICS__ENABLED": "yes"},
        ("LLMTASKS_METRICS__ENABLED: metrics.enabled: must be true or false, not the text 'yes'"),
    ),
    (
        "env: list",
        "",
        {"LLMTASKS_TASKS__TRANSLATE__PROVIDERS": "[x"},
        (
            "LLMTASKS_TASKS__TRANSLATE__PROVIDERS: tasks.translate.providers: must be a list of"
            " texts, not the text '[x'"
        ),
    ),
    (
        "env: no section",
        "",
        {"LLMTASKS_WEIGHT": "1"},
        "LLMTASKS_WEIGHT: is no setting; write LLMTASKS_<SECTION>__<KEY>",
    ),
    (
        "env: unknown section",
        "",
        {"LLMTASKS_WORKERS__CONCURRENCY": "1"},
        "LLMTASKS_WORKERS__CONCURRENCY: workers: is no section; did you mean worker?",
    ),
    (
        "env: unknown key",
        "",
        {"LLMTASKS_WORKER__THREADS": "1"},
        (
            "LLMTASKS_WORKER__THREADS: worker.threads: is no setting; allowed here: concurrency,"
            " max_calls, drain_s"
        ),
    ),
    (
        "env: too deep",
        "",
        {"LLMTASKS_BROKER__URL__HOST": "x"},
        "LLMTASKS_BROKER__URL__HOST: is no setting; write LLMTASKS_<SECTION>__<KEY>",
    ),
    (
        "env: task without key",
        "",
        {"LLMTASKS_TASKS__TRANSLATE": "x"},
        "LLMTASKS_TASKS__TRANSLATE: is no setting; write LLMTASKS_TASKS__<TYPE>__<KEY>",
    ),
    (
        "env: unknown provider",
        PROVIDER,
        {"LLMTASKS_PROVIDERS__B__WEIGHT": "1"},
        (
            "LLMTASKS_PROVIDERS__B__WEIGHT: no provider is named b; there are: a. A new one"
            " needs at least LLMTASKS_PROVIDERS__B__KIND and LLMTASKS_PROVIDERS__B__MODEL"
        ),
    ),
    (
        "env: half a provider",
        "",
        {"LLMTASKS_PROVIDERS__B__KIND": "openai"},
        (
            "LLMTASKS_PROVIDERS__B__KIND: no provider is named b; there are: none. A new one"
            " needs at least LLMTASKS_PROVIDERS__B__KIND and LLMTASKS_PROVIDERS__B__MODEL"
        ),
    ),
    (
        "env: provider without key",
        "",
        {"LLMTASKS_PROVIDERS__B__KIND": "openai", "LLMTASKS_PROVIDERS__B__MODEL": "m"},
        (
            "LLMTASKS_PROVIDERS__B__KIND: providers.b.api_key_env: is required without a"
            " base_url: name the environment variable that holds the key"
        ),
    ),
    (
        "env: provider's name",
        PROVIDER,
        {"LLMTASKS_PROVIDERS__A__NAME": "b"},
        "LLMTASKS_PROVIDERS__A__NAME: is no setting; write LLMTASKS_PROVIDERS__<NAME>__<KEY>",
    ),
    (
        "env: contradiction",
        PROVIDER + "tokens_per_minute = 5",
        {"LLMTASKS_PROVIDERS__A__OUTPUT_TOKENS_PER_MINUTE": "5"},
        (
            "LLMTASKS_PROVIDERS__A__OUTPUT_TOKENS_PER_MINUTE: providers.a.tokens_per_minute:"
            " contradicts input_tokens_per_minute and output_tokens_per_minute; give the one or"
            " the others"
        ),
    ),
    (
        "env: flower",
        "",
        {"LLMTASKS_FLOWER__HOST": "0.0.0.0"},
        (
            "LLMTASKS_FLOWER__HOST: flower.password: is required when flower.host is not"
            " loopback; set LLMTASKS_FLOWER__PASSWORD, or flower.host to 127.0.0.1"
        ),
    ),
    (
        "env: url",
        "",
        {"LLMTASKS_DATABASE__URL": "mysql://u:s3cret@h"},
        (
            "LLMTASKS_DATABASE__URL: database.url: must start with postgresql://,"
            " postgresql+psycopg:// or sqlite://"
        ),
    ),
    (
        "env: assumed base url",
        "",
        {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "localhost"},
        "OPENAI_BASE_URL: providers.openai.base_url: must start with http:// or https://",
    ),
    (
        "env: key in a number",
        "",
        {"LLMTASKS_WORKER__CONCURRENCY": "sk-s3cret"},
        (
            "LLMTASKS_WORKER__CONCURRENCY: worker.concurrency: must be a whole number of 1 or"
            " more, not what stands there"
        ),
    ),
]


def refused(environ: Mapping[str, str], folder: Path) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(environ, folder)
    message = str(caught.value)
    assert message.isprintable(), "one line"
    assert "s3cret" not in message
    return message


@pytest.mark.parametrize(
    ("text", "environ", "line"), [one[1:] for one in MISTAKES], ids=[one[0] for one in MISTAKES]
)
def test_a_mistake_is_one_line_that_says_where_it_stands(tmp_path, text, environ, line):
    path = tmp_path / "f.toml"
    path.write_text(text)
    message = refused({"LLMTASKS_CONFIG": str(path), **environ}, tmp_path)
    assert message.replace(str(path), "FILE") == line


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    assert refused({"LLMTASKS_CONFIG": str(tmp_path)}, tmp_path) == (
        f"LLMTASKS_CONFIG: {tmp_path} is a directory; name the file"
    )
    missing = tmp_path / "none.toml"
    assert refused({"LLMTASKS_CONFIG": str(missing)}, tmp_path) == (
        f"LLMTASKS_CONFIG: there is no file {missing}"
    )
    local = tmp_path / "llmtasks.toml"
    local.mkdir()
    assert refused({}, tmp_path) == f"{local}: cannot be read: Is a directory"


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    path = tmp_path / "llmtasks.toml"
    path.write_bytes("[worker]\n# f\u00fcr alle\n".encode("latin-1"))
    assert refused({}, tmp_path) == f"{path}: line 2: is not UTF-8 text; save the file as UTF-8"


def test_a_section_that_only_the_environment_misspells_is_named_by_its_variable(tmp_path):
    found = refused({"LLMTASKS_WORKERS__CONCURRENCY": "1"}, tmp_path)
    assert found == "LLMTASKS_WORKERS__CONCURRENCY: workers: is no section; did you mean worker?"


def test_providers_with_weight_0_alone_are_no_contradiction(tmp_path):
    (tmp_path / "llmtasks.toml").write_text(PROVIDER.replace("0.5", "0"))
    assert settings.load({}, tmp_path).providers[0].weight == 0
