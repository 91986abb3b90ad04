"""Settings: frozen values, and the only reader of the environment and of `llmtasks.toml`.

Order of precedence: `LLMTASKS_SECTION__KEY` in the environment, then the file named by `LLMTASKS_CONFIG`,
else `./llmtasks.toml`, else `llmtasks.toml` in the user's configuration directory, else the defaults here.
A provider's value is addressed by its name: `LLMTASKS_PROVIDERS__OPENAI__WEIGHT`.

All durations are seconds, all limits are per minute, all money is US dollars.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from llmtasks.errors import ConfigurationError

_ENV_PREFIX = "LLMTASKS_"
#: Addressed by the environment, but no section of the file.
_ENV_CONFIG_FILE = "LLMTASKS_CONFIG"

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Broker(_Section, frozen=True):
    """`[broker]`: the Redis that carries Celery's messages. No url: the embedded server."""

    url: str | None = None


class Redis(_Section, frozen=True):
    """`[redis]`: what the fleet agrees on (limits, health, cache), and Celery results.

    No url: the broker's server. `prefix` starts every key, so that fleets can share a server.
    """

    url: str | None = None
    prefix: Annotated[str, Meta(min_length=1)] = "llmtasks"


class Database(_Section, frozen=True):
    """`[database]`: the truth. No url: SQLite in the data directory."""

    url: str | None = None
    pool_size: Count = 10


class Local(_Section, frozen=True):
    """`[local]`: where the embedded server and SQLite live. None: the user's data directory."""

    data_dir: str | None = None


class Provider(_Section, frozen=True):
    """One `[[providers]]` entry. An omitted limit means no limit; weight 0 is a standby."""

    name: Name
    kind: Literal["openai", "anthropic"]
    model: Annotated[str, Meta(min_length=1)]
    api_key_env: str | None = None
    base_url: str | None = None
    weight: NotNegative = 1.0
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    input_tokens_per_minute: Positive | None = None
    output_tokens_per_minute: Positive | None = None
    max_concurrency: Count | None = None
    context_window: Count | None = None
    timeout_s: Positive = 120.0
    burst_s: NotNegative = 0.8  # seconds of quota that may be spent at once


class Task(_Section, frozen=True):
    """`[tasks.<type>]`. `providers` defaults to all of them; the output limit to the task type's own."""

    providers: tuple[str, ...] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    max_output_tokens: Count | None = None


class Cache(_Section, frozen=True):
    """`[cache]`: only answers at or below `max_temperature` are kept in Redis, for `ttl_s`."""

    max_temperature: NotNegative = 0.3
    ttl_s: Count = 3600


class Retry(_Section, frozen=True):
    """`[retry]`: attempts of one job, and how long to wait between them."""

    max_attempts: Count = 5
    base_s: Positive = 1.0  # first backoff; doubles, with full jitter
    max_s: Positive = 60.0
    default_retry_after_s: Positive = 60.0  # a RateLimitError that names no time


class Delivery(_Section, frozen=True):
    """`[delivery]`: how a job gets to a worker, and back from a dead one."""

    record: bool = True  # false: this producer has no database access, the worker writes the row
    lease_s: Annotated[float, Meta(ge=1)] = 30.0  # a worker silent for so long has lost its jobs
    publish_timeout_s: Positive = 1.5  # then the job is sent by maintenance instead
    resend_after_s: Positive = 10.0  # a sent job that no queue holds any more is sent again
    max_crashes: Count = 3  # a job whose workers died so often is failed


class Dispatch(_Section, frozen=True):
    """`[dispatch]`: how batches reach the broker, and how long a job waits in its slot."""

    window_s: Positive = 5.0  # seconds of a queue's work kept in the broker
    interval_s: Positive = 0.5  # between two feedings of one queue
    park_after_s: NotNegative = 5.0  # a longer block frees the slot
    ageing_s: Positive = 600.0  # a waiting row gains one priority level in so long


class Worker(_Section, frozen=True):
    """`[worker]`: `concurrency` counts jobs, `max_calls` bounds model calls in flight."""

    concurrency: Count = 32
    max_calls: Count = 256
    drain_s: NotNegative = 30.0  # SIGTERM: calls in flight may take so long, then jobs go back


class Metrics(_Section, frozen=True):
    """`[metrics]`: each worker process serves its own on the first free port from `port`."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 9464  # 0: any free one


class Flower(_Section, frozen=True):
    """`[flower]`: who may look. Without a password it answers on loopback only."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65535)] = 5555
    user: str = "llmtasks"
    password: str | None = None


class Documents(_Section, frozen=True):
    """`[documents]`: what is accepted."""

    max_bytes: Count = 20_000_000


class Prompts(_Section, frozen=True):
    """`[prompts]`: a directory whose `<task type>.prompt.md` files replace the shipped ones."""

    dir: str | None = None


class Log(_Section, frozen=True):
    """`[log]`: level of our own lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(_Section, frozen=True):
    """Everything that can be configured, validated as a whole."""

    broker: Broker = Broker()
    redis: Redis = Redis()
    database: Database = Database()
    local: Local = Local()
    providers: tuple[Provider, ...] = ()
    tasks: dict[str, Task] = {}
    cache: Cache = Cache()
    retry: Retry = Retry()
    delivery: Delivery = Delivery()
    dispatch: Dispatch = Dispatch()
    worker: Worker = Worker()
    metrics: Metrics = Metrics()
    flower: Flower = Flower()
    documents: Documents = Documents()
    prompts: Prompts = Prompts()
    log: Log = Log()

    def task(self, task_type: str) -> Task:
        """The settings of a task type; defaults where the file says nothing."""
        return self.tasks.get(task_type, Task())

    def providers_for(self, task_type: str) -> tuple[Provider, ...]:
        """The providers that may serve a task type, in the file's order."""
        names = self.task(task_type).providers
        return tuple(p for p in self.providers if names is None or p.name in names)

    def is_shared(self, temperature: float) -> bool:
        """Whether answers at this temperature may be kept and given to others who ask the same."""
        return temperature <= self.cache.max_temperature

    @property
    def data_dir(self) -> Path:
        """The directory of the embedded server and of SQLite. Not created here."""
        if self.local.data_dir:
            return Path(self.local.data_dir).expanduser().absolute()
        import platformdirs

        return Path(platformdirs.user_data_path("llmtasks"))

    @property
    def socket_path(self) -> Path:
        """The embedded server's Unix socket: in the data directory, or, where that path is longer than
        a socket address can be, in a private directory named after it.
        """
        path = self.data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"llmtasks-{os.getuid()}-{digest}" / "valkey.sock"

    @property
    def embedded(self) -> bool:
        """No broker is configured: this machine's embedded server carries the messages."""
        return self.broker.url is None

    @property
    def broker_url(self) -> str:
        """Where Celery publishes."""
        return self.broker.url or f"redis+socket://{self.socket_path}?virtual_host=0"

    @property
    def redis_url(self) -> str:
        """What the fleet agrees on, in redis-py's form of a URL."""
        if self.redis.url:
            return self.redis.url
        return self.broker.url or f"unix://{self.socket_path}?db=1"

    @property
    def result_url(self) -> str:
        """Celery's results: the same server as `redis_url`, in Celery's form of a URL."""
        url = self.redis_url
        if url.startswith("unix://"):
            return "redis+socket://" + url.removeprefix("unix://").replace("db=", "virtual_host=")
        return url


#: Linux allows 107 bytes and a terminator in sockaddr_un, macOS 103.
_SOCKET_PATH_BYTES = 100


def load(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read file and environment.

    Raises:
        ConfigurationError: one line that names the key, where it stands, and what is allowed.
    """
    environ = os.environ if environ is None else environ
    path = _config_file(environ, cwd or Path.cwd())
    data = _read(path) if path else {}
    overridden = _apply_environment(data, environ)
    try:
        settings = msgspec.convert(data, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigurationError(_explain(error, data, path, overridden)) from None
    _check(settings, str(path) if path else "the environment")
    return settings


@functools.cache
def current() -> Settings:
    """The settings of this process, read at first use (importing reads nothing)."""
    return load()


def api_key(provider: Provider, environ: Mapping[str, str] | None = None) -> str | None:
    """The provider's key from the environment variable it names; None when it names none.

    Raises:
        ConfigurationError: the variable is named but not set.
    """
    if provider.api_key_env is None:
        return None
    environ = os.environ if environ is None else environ
    key = environ.get(provider.api_key_env, "").strip()
    if not key:
        raise ConfigurationError(
            f"providers.{provider.name}.api_key_env: the environment variable"
            f" {provider.api_key_env} is not set; export it, or remove the provider"
        )
    return key


def _config_file(environ: Mapping[str, str], cwd: Path) -> Path | None:
    named = environ.get(_ENV_CONFIG_FILE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise ConfigurationError(f"{_ENV_CONFIG_FILE}: there is no file {path}")
        return path
    local = cwd / "llmtasks.toml"
    if local.is_file():
        return local
    import platformdirs

    user = Path(platformdirs.user_config_path("llmtasks")) / "llmtasks.toml"
    return user if user.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read as TOML: {error}") from None


def _apply_environment(data: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the overrides into `data`; returns dotted key -> environment variable, for messages."""
    overridden: dict[str, str] = {}
    for variable, value in sorted(environ.items()):
        if not variable.startswith(_ENV_PREFIX) or variable == _ENV_CONFIG_FILE:
            continue
        path = variable.removeprefix(_ENV_PREFIX).lower().split("__")
        if len(path) == 1 or not all(path):
            raise ConfigurationError(
                f"{variable}: is no setting; settings are {_ENV_PREFIX}SECTION__KEY"
            )
        section, *middle, key = path
        if section == "providers":
            if len(middle) != 1:
                raise ConfigurationError(f"{variable}: write {_ENV_PREFIX}PROVIDERS__<NAME>__<KEY>")
            target = _provider_entry(data, middle[0], variable)
            overridden[f"providers.{target['name']}.{key}"] = variable
        else:
            target = data
            for part in (section, *middle):
                target = target.setdefault(part, {})
                if not isinstance(target, dict):
                    raise ConfigurationError(f"{variable}: {part} is not a section")
            overridden[".".join(path)] = variable
        target[key] = _list_or_text(key, value, variable)
    return overridden


def _provider_entry(data: dict[str, Any], env_name: str, variable: str) -> dict[str, Any]:
    providers = data.setdefault("providers", [])
    if not isinstance(providers, list):
        raise ConfigurationError(f"{variable}: providers must be [[providers]] in the file")
    for entry in providers:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and re.sub(r"[^a-z0-9]", "_", name.lower()) == env_name:
            return _table(entry)
    providers.append({"name": env_name})
    return _table(providers[-1])


def _table(value: Any) -> dict[str, Any]:
    """The same object, for the type checker: TOML tables are dicts."""
    assert isinstance(value, dict)
    return value


def _list_or_text(key: str, value: str, variable: str) -> Any:
    """Only `providers` of a task is a list: `a,b` or a JSON array."""
    if key != "providers":
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ConfigurationError(f"{variable}: is no JSON list: {value!r}") from None
    return [part.strip() for part in value.split(",") if part.strip()]


def _explain(
    error: msgspec.ValidationError,
    data: Mapping[str, Any],
    path: Path | None,
    overridden: Mapping[str, str],
) -> str:
    """Msgspec says "Expected `float` - at `$.providers[0].weight`"; we say where that is."""
    text = str(error)
    what, _, at = text.partition(" - at `$")
    key = at.rstrip("`").lstrip(".")
    if key.startswith("tasks[...]"):  # msgspec does not say which
        key = key.replace("[...]", f".{_wrong_task(data)}", 1)
    unknown = re.search(r"unknown field `([^`]+)`", what)
    missing = re.search(r"missing required field `([^`]+)`", what)
    if found := unknown or missing:
        key = ".".join(part for part in (key, found.group(1)) if part)
    if index := re.match(r"providers\[(\d+)\]", key):
        entry = data["providers"][int(index.group(1))]
        name = entry.get("name", f"#{int(index.group(1)) + 1}") if isinstance(entry, dict) else "?"
        key = f"providers.{name}{key[index.end() :]}"
    where = overridden.get(key) or (str(path) if path else "the environment")
    if unknown:
        return f"{where}: {key} is no setting; {_neighbours(key)}"
    if missing:
        return f"{where}: {key} is required"
    return f"{where}: {key}: {what[:1].lower() + what[1:]}"


def _wrong_task(data: Mapping[str, Any]) -> str:
    for name, table in data["tasks"].items():
        try:
            msgspec.convert(table, Task, strict=False)
        except msgspec.ValidationError:
            return str(name)
    return "?"


def _neighbours(key: str) -> str:
    section = key.split(".", maxsplit=1)[0]
    struct: Any = {"providers": Provider, "tasks": Task}.get(section)
    if struct is None and "." in key:
        struct = type(getattr(Settings(), section, None))
    fields = getattr(struct or Settings, "__struct_fields__", Settings.__struct_fields__)
    return f"allowed here: {', '.join(fields)}"


def _check(settings: Settings, where: str) -> None:
    """Contradictions that no single value shows."""
    for key, value in _numbers(msgspec.to_builtins(settings)):
        if not math.isfinite(value):
            raise ConfigurationError(f"{where}: {key}: must be a finite number")
    names = [provider.name for provider in settings.providers]
    folded = [name.lower() for name in names]
    for name in names:
        if folded.count(name.lower()) > 1:
            raise ConfigurationError(
                f"{where}: providers.{name}.name: used twice; give one another"
            )
    for provider in settings.providers:
        _check_provider(provider, where)
    for task_type, task in settings.tasks.items():
        _check_task(task, f"{where}: tasks.{task_type}.providers", names)
    _check_url(settings.broker.url, "broker.url", ("redis", "rediss", "redis+socket"), where)
    _check_url(settings.redis.url, "redis.url", ("redis", "rediss", "unix"), where)
    _check_url(settings.database.url, "database.url", ("sqlite", "postgresql"), where)
    if settings.redis.url is None and (settings.broker.url or "").startswith("redis+socket"):
        raise ConfigurationError(f"{where}: redis.url: is required with a broker on a socket")
    if settings.flower.host not in _LOOPBACK and not settings.flower.password:
        raise ConfigurationError(
            f"{where}: flower.password: is required when flower.host is not loopback"
        )


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Every number of the settings with its dotted key."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _numbers(one, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for one in value:
            name = one.get("name", "?") if isinstance(one, dict) else "?"
            yield from _numbers(one, f"{key}.{name}")
    elif isinstance(value, float):
        yield key, value


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _check_provider(provider: Provider, where: str) -> None:
    key = f"{where}: providers.{provider.name}"
    if provider.api_key_env is None and provider.base_url is None:
        raise ConfigurationError(
            f"{key}.api_key_env: is required without a base_url: name the environment variable"
            " that holds the key"
        )
    if provider.base_url is not None:
        _check_url(
            provider.base_url, f"providers.{provider.name}.base_url", ("http", "https"), where
        )
    split = provider.input_tokens_per_minute or provider.output_tokens_per_minute
    if provider.tokens_per_minute and split:
        raise ConfigurationError(
            f"{key}.tokens_per_minute: contradicts input_tokens_per_minute and"
            " output_tokens_per_minute; give the one or the others"
        )


def _check_task(task: Task, key: str, names: list[str]) -> None:
    for name in task.providers or ():
        if name not in names:
            known = ", ".join(names) or "none"
            raise ConfigurationError(f"{key}: no provider is named {name!r}; there are: {known}")
    if task.providers is not None and not task.providers:
        raise ConfigurationError(f"{key}: is empty; name one, or remove the key")


def _check_url(url: str | None, key: str, schemes: tuple[str, ...], where: str) -> None:
    if url is None:
        return
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{where}: {key}: is no URL") from None
    scheme = parts.scheme.split("+")[0] if key == "database.url" else parts.scheme
    if scheme not in schemes:
        raise ConfigurationError(
            f"{where}: {key}: must start with one of {', '.join(s + '://' for s in schemes)}"
        )
    if scheme in ("http", "https", "redis", "rediss"):
        try:
            port_is_one = parts.port is None or parts.port > 0
        except ValueError:
            port_is_one = False
        if not parts.hostname or not port_is_one:
            raise ConfigurationError(f"{where}: {key}: names no host, or no port from 1 to 65535")
    if scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", parts.path):
        raise ConfigurationError(f"{where}: {key}: its path must be a database number, as in /0")
