"""Settings: frozen values, and the only reader of the environment and of `llmtasks.toml`.

Order of precedence: `LLMTASKS_SECTION__KEY` in the environment, then the file named by `LLMTASKS_CONFIG`,
else `./llmtasks.toml`, else `llmtasks.toml` in the user's configuration directory, else the defaults here.
A provider's value is addressed by its name: `LLMTASKS_PROVIDERS__OPENAI__WEIGHT`. Where no provider is
configured, one is assumed from `OPENAI_API_KEY` or `ANTHROPIC_API_KEY`.

All durations are seconds, all limits are per minute, all money is US dollars. The text below each key is its
documentation: `docs/configuration.md` is made of it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import tempfile
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn
from urllib.parse import SplitResult, urlsplit

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from llmtasks import addresses, wording
from llmtasks.errors import ConfigurationError

_ENV_PREFIX = "LLMTASKS_"
#: Addressed by the environment, but no section of the file.
_ENV_CONFIG_FILE = "LLMTASKS_CONFIG"

# Upper bounds keep what clocks, Redis and SQL can count; no sensible value comes near them.
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=31_536_000)]
PerMinute = Annotated[float, Meta(gt=0, le=1_000_000_000_000)]
Count = Annotated[int, Meta(ge=1, le=2_000_000_000)]
# Less than a day would race with what is still being submitted, told or counted.
Days = Annotated[float, Meta(ge=1, le=36_500)]
Text = Annotated[str, Meta(min_length=1)]
Url = Annotated[str, Meta(min_length=1, description="a URL", extra={"secret": True})]
Function = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="a function, as in package.module:function",
    ),
]
Name = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$",
        max_length=64,
        description="a name of at most 64 letters, digits, _, - and .",
    ),
]
Variable = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="the name of an environment variable, never the key itself",
        extra={"secret": True},
    ),
]
# Flower splits its credentials at these.
User = Annotated[str, Meta(pattern="^[^,:]+$", description="a text without comma and colon")]
Password = Annotated[
    str, Meta(pattern="^[^,]*$", description="a text without comma", extra={"secret": True})
]


Token = Annotated[
    str,
    Meta(
        pattern=r"^[^\s,:]{1,128}:[A-Za-z0-9._~+/=-]{16,}$",
        description="a tenant and its token of 16 characters or more, as in acme:TOKEN",
        extra={"secret": True},
    ),
]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Shown without passwords and credentials, whoever prints it."""

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={shown!r}" for name, shown in self.__rich_repr__())
        return f"{type(self).__name__}({values})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown: list[tuple[str, Any]] = []
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name in {"password", "tokens"} and value:
                value = "***"
            elif isinstance(value, str) and "://" in value:
                value = addresses.public(value)
            shown.append((name, value))
        return shown


class Broker(_Section, frozen=True):
    """The Redis or Valkey that carries Celery's messages."""

    url: Url | None = None
    """`redis://HOST:PORT/DATABASE`, `rediss://` with TLS, or `redis+socket:///PATH`. Without it the workers
    of one machine keep an embedded Valkey among themselves; several machines need a server that all reach.
    """


class Redis(_Section, frozen=True):
    """What the fleet agrees on (limits, health, cache), and Celery's results."""

    url: Url | None = None
    """`redis://`, `rediss://` or `unix:///PATH?db=1`. Without it the broker's. Give another database or
    server where the broker's shall hold messages alone; it must not evict keys (`maxmemory-policy
    noeviction`).
    """
    cluster: bool = False
    """Whether `redis.url` names a node, any one, of a Redis Cluster. Cached answers are spread over its
    nodes; limits and health stay together on one. It needs a broker beside it, which cannot be a cluster and
    holds Celery's results then.
    """
    prefix: Text = "llmtasks"
    """Begins every key of limits, health and cache: fleets that share a server need different ones, and do
    then not share limits.
    """
    local_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """The part (0 to 1) of every limit that one worker process may spend by itself while this Redis does not
    answer: from 5 seconds after that, when what others were granted is used up, until `local_for_s`. 0: it
    holds its jobs until Redis is back, and no limit is exceeded. What a process grants itself nobody else
    knows: with `k` of `N` processes cut off from a Redis that serves the others, the fleet can reach
    `1 + k * local_share` times a limit `L`, with all of them cut off `N * local_share` times. So give at most
    `1/N`, and less where a cut may go through the middle of the fleet. In any `W` seconds one process is
    granted at most `local_share * L * W / 60`, and `burst_s` of that or one call, whichever is more. Of
    `max_concurrency` the share is rounded down: to none, where it is less than one. A process that never
    reached Redis holds; a provider that was out, asks for silence or fails once is left alone. Meanwhile
    there is no cache, the same question may be paid by several jobs, and tenants and priorities have no
    order. All of it needs a broker that answers: give the two different servers.
    """
    local_for_s: Seconds = 60.0
    """Seconds after the last answer of Redis when a process with a `local_share` holds after all."""


class Database(_Section, frozen=True):
    """The truth: documents, jobs, results."""

    url: Url | None = None
    """`postgresql://USER@HOST/NAME`, or `sqlite:////ABSOLUTE/PATH`. Without it SQLite in the data directory,
    which serves the workers of one machine.
    """
    pool_size: Count = 10
    """Connections that one process opens at most. Raise it with `worker.concurrency` when slots wait for the
    database; PostgreSQL must allow as many times the number of processes.
    """


class Local(_Section, frozen=True):
    """Where the embedded server and SQLite live."""

    data_dir: Text | None = None
    """A directory for this user alone; created when needed. Without it the user's data directory (on Linux
    `~/.local/share/llmtasks`).
    """


class Provider(_Section, frozen=True):
    """One for each model that may answer. A limit that is not given is no limit.

    All workers together keep a provider's limits: set them to what your account has, or to the share of it
    that this fleet may use.
    """

    name: Name
    """How results, metrics and `[tasks.…] providers` call it, and its environment variables (other signs than
    letters and digits are `_` there). Unique.
    """
    kind: Literal["openai", "anthropic"]
    """The protocol it speaks. vLLM, llama.cpp, Ollama and most proxies speak `openai` at a `base_url`."""
    model: Text
    """The model, as its provider names it."""
    api_key_env: Variable | None = None
    """The environment variable that holds the key. Only where there is a `base_url` it may be left out: no
    key is sent then.
    """
    base_url: Url | None = None
    """Where it listens, if that is not the vendor's own address: for `openai` up to and with `/v1`, as in
    `http://localhost:8000/v1`.
    """
    weight: Annotated[float, Meta(ge=0, le=1_000_000)] = 1.0
    """Its share of the calls, in relation to the other weights. 0 is a standby: called when no provider with
    a weight can take a call. Where all are 0 they share equally.
    """
    requests_per_minute: PerMinute | None = None
    """Calls per minute. This and the next three are what is used at the most: where the provider states a
    lower limit in the headers of its answers, that one is kept to for as long as it does.
    """
    tokens_per_minute: PerMinute | None = None
    """Tokens per minute, input and the reserved output together, as OpenAI counts. Not together with the two
    below.
    """
    input_tokens_per_minute: PerMinute | None = None
    """Input tokens per minute, as Anthropic counts."""
    output_tokens_per_minute: PerMinute | None = None
    """Output tokens per minute, as Anthropic counts."""
    max_concurrency: Count | None = None
    """Calls in flight at once, from all workers together. For a server of your own: what it computes at once.
    """
    context_window: Count | None = None
    """Tokens that question and answer may have together. Where it is given, a document that does not fit
    fails at once, and is not sent to be refused.
    """
    timeout_s: Seconds = 120.0
    """Seconds from the connection to the last byte of an answer; then the call counts as failed. Raise it for
    slow models with long answers.
    """
    burst_s: Annotated[float, Meta(ge=0, le=60)] = 0.8
    """Seconds of quota that may be spent at once after a pause. Lower it for a provider that answers 429
    although the limits are right; 0 spaces all calls evenly.
    """


class Task(_Section, frozen=True):
    """One for each task type that shall differ from the defaults: `[tasks.summarize]`, `[tasks.extract]`,
    `[tasks.translate]`, and those of installed packages.
    """

    providers: tuple[Name, ...] | None = None
    """Names of the providers that may serve it. Without it: all."""
    temperature: Annotated[float, Meta(ge=0, le=2)] = 0.0
    """Sampling temperature. Models without one are not sent any. Above `cache.max_temperature` no answer is
    reused.
    """
    max_output_tokens: Count | None = None
    """Tokens that an answer may have. Without it the task type asks for what the document needs, which spends
    less of the quota. Set it where your model can write more, or less, than 16,384.
    """


class Cache(_Section, frozen=True):
    """Answers in Redis that are given again for exactly the same question."""

    max_temperature: Annotated[float, Meta(ge=0, le=2)] = 0.3
    """Only answers at or below this temperature are kept, and shared between jobs in flight."""
    ttl_s: Count = 3600
    """Seconds an answer is kept. Results in the database answer the same question for as long as
    they are kept."""


class Streams(_Section, frozen=True):
    """Answers of jobs submitted with `stream`, in Redis while they are written, for those who watch."""

    keep_s: Seconds = 900.0
    """Seconds that the pieces of an answer are kept after the last one. The result is in the database."""
    max_entries: Count = 20_000
    """Pieces of one job that are kept. Who comes too late for the first ones gets the answer when it is
    whole.
    """


class Batching(_Section, frozen=True):
    """How concurrent look-ups and claims of one process are collected into round trips to Redis."""

    batch_size: Count = 32
    """Callers that share one round trip at the most. 1: each has its own. More saves CPU of worker and
    server, and the first of them hears when the last one is served: some 100 microseconds of the server for
    each.
    """
    max_wait_ms: Annotated[float, Meta(ge=0, le=1000)] = 5.0
    """Milliseconds that a caller waits for others at the most. Nobody waits while less than four round trips
    are under way, nor for one that comes back sooner. Raise it where Redis is far away and CPU is short.
    """


class Retry(_Section, frozen=True):
    """Attempts of one job. A rate limit or an outage delays a job and costs it no attempt."""

    max_attempts: Count = 5
    """Calls that may fail before the job has failed."""
    base_s: Seconds = 1.0
    """Seconds of the first wait between two attempts, at most; each next one may be twice as long."""
    max_s: Seconds = 60.0
    """Seconds of the longest wait between two attempts."""
    default_retry_after_s: Seconds = 60.0
    """Seconds that a provider is left alone after a 429 that names no time."""


class Delivery(_Section, frozen=True):
    """How a job gets to a worker, and back from a dead one."""

    record: bool = True
    """Whether this process writes the jobs it submits into the database before it publishes them. `false` for
    a producer without access to the database: the worker writes the row, and a message that is lost is lost.
    """
    lease_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 30.0
    """Seconds of silence after which a worker counts as dead and others take over its jobs. Raise it where
    machines pause for longer, lower it to take over sooner.
    """
    publish_timeout_s: Seconds = 1.5
    """Seconds a producer waits for a broker that does not answer; the job is sent by a worker then."""
    resend_after_s: Seconds = 10.0
    """Seconds after which a job that was sent, and that no queue holds any more, is sent again."""
    max_crashes: Count = 3
    """A job whose workers died so often is failed: it may be what kills them."""
    deadline_s: Seconds | None = None
    """Seconds that a job may take from its submission, waiting included, where it does not bring a
    `deadline_s` of its own. Then it fails with `DeadlineExceeded`, and no more is paid for it. Without it a
    job waits as long as it takes.
    """


class Dispatch(_Section, frozen=True):
    """How batches reach the broker, and how long a job waits in its slot."""

    window_s: Seconds = 5.0
    """Seconds of each queue's work that the broker holds. Raise it when workers idle between short jobs;
    lower it so that urgent jobs and cancelling take effect sooner.
    """
    interval_s: Seconds = 0.5
    """Seconds between two feedings of a queue."""
    park_after_s: SecondsOrNone = 5.0
    """Seconds of a block (Retry-After, an outage) that a job sits out in its slot; for a longer one it goes
    back and another one gets the slot.
    """
    ageing_s: Seconds = 600.0
    """Seconds of waiting after which a job gains one level of priority."""


class Worker(_Section, frozen=True):
    """One worker process."""

    concurrency: Count = 32
    """Jobs that one process runs at once. Mostly they wait for answers: raise it until the providers' limits
    are spent.
    """
    max_calls: Count = 256
    """Model calls that one process has in flight at once."""
    drain_s: SecondsOrNone = 30.0
    """Seconds that calls in flight have to end after SIGTERM; then their jobs go back. Keep it below the time
    after which your supervisor kills.
    """


class Metrics(_Section, frozen=True):
    """Each worker process serves its own, for Prometheus."""

    enabled: bool = True
    """Whether metrics are served."""
    host: Text = "127.0.0.1"
    """The address to listen on. Other than loopback, as `0.0.0.0` in a container, it needs a password."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 9464
    """The first process of a machine takes this port, the next ones the ports after it. 0: any free one."""
    user: User = "llmtasks"
    """The user's name, where there is a password."""
    password: Password | None = None
    """Whoever scrapes has to know it (basic auth). Better given as `LLMTASKS_METRICS__PASSWORD` than in the
    file.
    """


class Flower(_Section, frozen=True):
    """Who may look at Flower."""

    host: Text = "127.0.0.1"
    """The address to listen on. Other than loopback it needs a password."""
    port: Annotated[int, Meta(ge=1, le=65535)] = 5555
    """Its port."""
    user: User = "llmtasks"
    """The user's name, where there is a password."""
    password: Password | None = None
    """Whoever looks has to know it. Better given as `LLMTASKS_FLOWER__PASSWORD` than in the file."""


class API(_Section, frozen=True):
    """`llmtasks serve`: documents, jobs and streams over HTTP."""

    host: Text = "127.0.0.1"
    """The address to listen on. Other than loopback it needs tokens."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000
    """Its port. 0: any free one."""
    tokens: tuple[Token, ...] = ()
    """Who may call, as `TENANT:TOKEN`: whoever knows the token (`Authorization: Bearer TOKEN`) sees and
    touches what is the tenant's. A tenant may have several. Without any, everybody on this machine is the
    tenant `default`. Better given as `LLMTASKS_API__TOKENS` than in the file.
    """
    max_body_bytes: Count = 32_000_000
    """Bytes that a request may have; a larger one is refused."""
    max_batch: Count = 100_000
    """Document ids that one request may submit."""
    max_streams: Count = 1_000
    """Streams of events that one server sends at once."""
    chat_wait_s: Seconds = 30.0
    """Seconds that `POST /chat/stream` waits for its turn; then it is refused (503)."""
    chat_output_tokens: Count = 1_024
    """Tokens that an answer of `POST /chat/stream` may have, where the request does not say."""
    drain_s: SecondsOrNone = 10.0
    """Seconds that requests and chats under way have to end after SIGTERM."""


class Documents(_Section, frozen=True):
    """What is accepted, and where texts come from that were not added."""

    max_bytes: Count = 20_000_000
    """Bytes that a document may have; a larger one is refused."""
    source: Function | None = None
    """A function of yours that a worker calls with the id (and `tenant=`, if it takes that) of a document
    that was not added; it returns its text, or None.
    """


class Results(_Section, frozen=True):
    """Where results go besides the database."""

    sink: Function | None = None
    """A function of yours that a worker calls with each ended job, a dict, after it is committed: at least
    once.
    """
    max_output_bytes: Count = 2_000_000
    """Bytes of JSON that the output of one job may have; with more it fails with `OutputTooLarge`. The
    answers it paid for are kept: with a higher limit its retry pays nothing again.
    """


class Retention(_Section, frozen=True):
    """How long what has ended is kept, in days, at least one. Workers remove the rest, a little at a time;
    `llmtasks maintenance` does it at once, and with `--dry-run` says what it would remove. What is not given
    is kept for ever.
    """

    jobs_days: Days | None = None
    """Days after its end that a job is kept, with its result, its calls and what they cost: sums over the
    past shrink by it. A batch (or Celery group) goes as a whole, when all of its jobs have ended so long ago;
    its id is unknown then. What the sink was not given yet stays. A question that is asked again after that
    is paid again, and a job id may be used again.
    """
    answers_days: Days = 7.0
    """Days that the single answers of models are kept of jobs that have ended. They serve only to go on with
    a job that was interrupted; results, tokens and costs stay.
    """
    texts_days: Days | None = None
    """Days that a text is kept after its document got another one, or was removed. A job keeps the text it
    was submitted with until it has completed: one that failed or was cancelled may be retried.
    """
    documents_days: Days | None = None
    """Days that a document is kept after it was added or last changed, and longer while a job about it has
    not completed. Needs `texts_days`, by which its text then goes.
    """


class Prompts(_Section, frozen=True):
    """Wordings of your own."""

    dir: Text | None = None
    """A directory whose `<task type>.prompt.md` files replace the shipped ones. A changed prompt is a changed
    question: nothing that was answered before is reused.
    """


class Log(_Section, frozen=True):
    """Our own log lines; they never hold document text or keys."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe lines that are written: `info` has one for each job's end, `debug` one for each model
    call as well, and Celery's own.
    """
    format: Literal["text", "json"] = "text"
    """`text`: time, level, logger, the event's name and `key=value`. `json`: an object on each line, with
    `timestamp`, `level`, `logger`, `event` and the fields.
    """


class Settings(_Section, frozen=True):
    """Everything that can be configured, validated as a whole."""

    broker: Broker = Broker()
    redis: Redis = Redis()
    database: Database = Database()
    local: Local = Local()
    providers: tuple[Provider, ...] = ()
    tasks: dict[str, Task] = {}
    cache: Cache = Cache()
    batching: Batching = Batching()
    retry: Retry = Retry()
    delivery: Delivery = Delivery()
    dispatch: Dispatch = Dispatch()
    worker: Worker = Worker()
    metrics: Metrics = Metrics()
    flower: Flower = Flower()
    api: API = API()
    documents: Documents = Documents()
    results: Results = Results()
    retention: Retention = Retention()
    streams: Streams = Streams()
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

        Raises:
            ConfigurationError: that directory, whose name others can foresee, is not this user's alone.
        """
        path = self.data_dir / "valkey.sock"
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        directory = Path(tempfile.gettempdir()) / f"llmtasks-{os.getuid()}-{digest}"
        _require_private(directory)
        return directory / "valkey.sock"

    @property
    def embedded(self) -> bool:
        """No broker is configured: this machine's embedded server carries the messages."""
        return self.broker.url is None

    @property
    def broker_url(self) -> str:
        """Where Celery publishes."""
        return self.broker.url or addresses.for_celery(f"unix://{self.socket_path}?db=0")

    @property
    def redis_url(self) -> str:
        """What the fleet agrees on, in redis-py's form of a URL."""
        if self.redis.url:
            return self.redis.url
        return self.broker.url or f"unix://{self.socket_path}?db=1"

    @property
    def result_url(self) -> str:
        """Celery's results: the same server as `redis_url`, in Celery's form of a URL. Celery knows no
        clusters: beside one, the broker's.
        """
        beside = replace(self, redis=Redis()) if self.redis.cluster else self
        return addresses.for_celery(beside.redis_url)


#: Linux allows 107 bytes and a terminator in sockaddr_un, macOS 103.
_SOCKET_PATH_BYTES = 100


def _require_private(directory: Path) -> None:
    """What is there has to be ours: whoever owns it could listen in the server's place."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return
    raise ConfigurationError(
        f"is too long for a socket in it, and {directory} is not a directory of yours alone (chmod 700):"
        " remove that, or give a shorter path",
        key="local.data_dir",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where the settings come from.

    `path` is the file that was read, `overridden` maps a dotted key to the environment variable that gave
    it, `assumed` a provider's name to the key variable it was assumed from.
    """

    path: Path | None = None
    overridden: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    assumed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def where(self, *keys: str) -> str:
        """The environment variable that gave one of these keys, else the file, else "the environment"."""
        for key in keys:
            for given, variable in self.overridden.items():
                if given == key or given.startswith(f"{key}."):
                    return variable
        for key in keys:
            if key.startswith("providers.") and key.split(".")[1] in self.assumed:
                return self.assumed[key.split(".")[1]]
        return str(self.path) if self.path else "the environment"

    def error(self, key: str, says: str, *causes: str) -> ConfigurationError:
        """The one line about a wrong value; `causes` are other keys that it contradicts."""
        line = f"{self.where(key, *causes)}: {key}: {says}"
        return ConfigurationError(" ".join(line.split()))

    def located(self, error: ConfigurationError) -> ConfigurationError:
        """The same error with where its key stands, if it is about one."""
        return error if error.key is None else self.error(error.key, error.says)


def load(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read file and environment.

    Raises:
        ConfigurationError: one line that names where it stands, the key, what is wrong, and what is allowed.
    """
    data, found = _sources(environ, cwd)
    try:
        settings = msgspec.convert(data, Settings)
    except msgspec.ValidationError:
        _refuse(data, found)
    _check(settings, found)
    return settings


def origin(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Origin:
    """Where the values of `load` come from.

    Raises:
        ConfigurationError: the file or a variable cannot be read.
    """
    return _sources(environ, cwd)[1]


@functools.cache
def current() -> Settings:
    """The settings of this process, read at first use (importing reads nothing)."""
    return load()


@functools.cache
def current_origin() -> Origin:
    """Where the settings of this process come from."""
    return origin()


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
        blank = "is blank" if provider.api_key_env in environ else "is not set"
        raise ConfigurationError(
            f"the environment variable {provider.api_key_env} {blank}; export it, or remove the provider",
            key=f"providers.{provider.name}.api_key_env",
        )
    return key


def require_providers(settings: Settings, found: Origin) -> None:
    """Refuse to go on where nobody could be asked.

    Raises:
        ConfigurationError: no provider is configured; with how to give one.
    """
    if not settings.providers:
        file = f"{found.path}: " if found.path else ""
        raise ConfigurationError(
            f"{file}providers: none is configured; export {' or '.join(ASSUMED)}, or add a [[providers]]"
            " section to llmtasks.toml"
        )


# --- the sources ----------------------------------------------------------------------------------------


def _sources(environ: Mapping[str, str] | None, cwd: Path | None) -> tuple[dict[str, Any], Origin]:
    """The values of file, environment and assumption as plain data, and where they come from."""
    environ = os.environ if environ is None else environ
    path = _config_file(environ, cwd or Path.cwd())
    data = _read(path) if path else {}
    overridden: dict[str, str] = {}
    assumed = _assume(data, environ, overridden)
    _override(data, environ, overridden)
    return data, Origin(
        path=path, overridden=MappingProxyType(overridden), assumed=MappingProxyType(assumed)
    )


def _config_file(environ: Mapping[str, str], cwd: Path) -> Path | None:
    named = environ.get(_ENV_CONFIG_FILE, "").strip()
    if named:
        path = Path(named).expanduser()
        if path.is_dir():
            raise ConfigurationError(f"{_ENV_CONFIG_FILE}: {path} is a directory; name the file")
        if not path.exists():
            raise ConfigurationError(f"{_ENV_CONFIG_FILE}: there is no file {path}")
        return path
    local = cwd / "llmtasks.toml"
    if local.exists():
        return local
    import platformdirs

    user = Path(platformdirs.user_config_path("llmtasks")) / "llmtasks.toml"
    return user if user.exists() else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}: line {line}: is not UTF-8 text; save the file as UTF-8"
        ) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        says = " ".join(str(error).split())
        place = re.search(r" \(at (line \d+), column \d+\)$", says)
        at = f"{place[1]}: " if place else ""
        says = says[: place.start()] if place else says
        raise ConfigurationError(f"{path}: {at}cannot be read as TOML: {says}") from None
    except ValueError:
        raise ConfigurationError(f"{path}: holds a number of thousands of digits") from None


#: Key variable -> the provider assumed from it. The limits are not above those of the vendors' lowest paid
#: tiers for every current model, so that nobody is refused before they know what a limit is.
ASSUMED: Mapping[str, Mapping[str, Any]] = {
    "OPENAI_API_KEY": {
        "name": "openai",
        "kind": "openai",
        "model": "gpt-4o-mini",
        "requests_per_minute": 60,
        "tokens_per_minute": 60_000,
        "max_concurrency": 8,
    },
    "ANTHROPIC_API_KEY": {
        "name": "anthropic",
        "kind": "anthropic",
        "model": "claude-haiku-4-5",
        "requests_per_minute": 50,
        "input_tokens_per_minute": 30_000,
        "output_tokens_per_minute": 8_000,
        "max_concurrency": 4,
    },
}


def _assume(
    data: dict[str, Any], environ: Mapping[str, str], overridden: dict[str, str]
) -> dict[str, str]:
    """Add a provider where none is configured and a key is there; its name -> the key's variable.

    Only ever one: documents must not go to a second vendor unasked.
    """
    defined = any(re.fullmatch(r"LLMTASKS_PROVIDERS__.+__KIND", name) for name in environ)
    if "providers" in data or defined:
        return {}
    for variable, provider in ASSUMED.items():
        if not environ.get(variable, "").strip():
            continue
        name = provider["name"]
        entry = {**provider, "api_key_env": variable}
        address = f"{name.upper()}_BASE_URL"
        if base_url := environ.get(address, "").strip():
            entry["base_url"] = base_url
            overridden[f"providers.{name}.base_url"] = address
        data["providers"] = [entry]
        return {name: variable}
    return {}


def _override(data: dict[str, Any], environ: Mapping[str, str], overridden: dict[str, str]) -> None:
    """Put the environment's values into `data`, and their dotted key -> variable into `overridden`."""
    variables = [name for name in sorted(environ) if _is_setting(name, environ)]
    _define_providers(data, variables)
    for variable in variables:
        parts = variable.removeprefix(_ENV_PREFIX).lower().split("__")
        section, middle, key = parts[0], parts[1:-1], parts[-1]
        find: Callable[[dict[str, Any], str, str], Found]
        if section == "providers":
            form, depth, find = "PROVIDERS__<NAME>__<KEY>", 1, _provider_entry
        elif section == "tasks":
            form, depth, find = "TASKS__<TYPE>__<KEY>", 1, _task_entry
        else:
            form, depth, find = "<SECTION>__<KEY>", 0, _section
        naming = section == "providers" and key == "name"
        if len(middle) != depth or len(parts) == 1 or not all(parts) or naming:
            raise ConfigurationError(f"{variable}: is no setting; write {_ENV_PREFIX}{form}")
        dotted, target = find(data, middle[0] if middle else section, variable)
        if target is not None:
            overridden[f"{dotted}.{key}"] = variable
            _put(target, key, environ[variable], dotted)


def _is_setting(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether a variable is meant for us: Kubernetes tells every pod of a service `llmtasks-flower` in
    `LLMTASKS_FLOWER_SERVICE_HOST`, `LLMTASKS_FLOWER_PORT_5555_TCP` and so on.
    """
    if not variable.startswith(_ENV_PREFIX) or variable == _ENV_CONFIG_FILE:
        return False
    service = re.match(r"(.+?)_(SERVICE_(HOST|PORT)|PORT)(_|$)", variable)
    return not (service and f"{service[1]}_SERVICE_HOST" in environ)


def _put(target: dict[str, Any], key: str, value: str, dotted: str) -> None:
    """An empty value puts a key back to its default."""
    if not value.strip():
        target.pop(key, None)
        return
    section = dotted.split(".", maxsplit=1)[0]
    struct = {"providers": Provider, "tasks": Task}.get(section) or _hints(Settings).get(section)
    hint = _hints(struct).get(key) if struct else None
    target[key] = value if hint is None else wording.parsed(value, hint)


@functools.cache
def _hints(struct: type) -> dict[str, Any]:
    return typing.get_type_hints(struct, include_extras=True)


Found = tuple[str, "dict[str, Any] | None"]


def _section(data: dict[str, Any], name: str, _variable: str) -> Found:
    target = data.setdefault(name, {})
    return name, target if isinstance(target, dict) else None


def _task_entry(data: dict[str, Any], env_name: str, _variable: str) -> Found:
    tasks = data.setdefault("tasks", {})
    if not isinstance(tasks, dict):
        return "tasks", None
    name = next((name for name in tasks if _env_name(name) == env_name), env_name)
    target = tasks.setdefault(name, {})
    return f"tasks.{name}", target if isinstance(target, dict) else None


def _provider_entry(data: dict[str, Any], env_name: str, variable: str) -> Found:
    providers = data.get("providers", [])
    if not isinstance(providers, list):
        return "providers", None
    for name, entry in _named(providers):
        if _env_name(name) == env_name:
            return f"providers.{name}", entry
    stem = f"{_ENV_PREFIX}PROVIDERS__{env_name.upper()}__"
    there = ", ".join(name for name, _ in _named(providers)) or "none"
    raise ConfigurationError(
        f"{variable}: no provider is named {env_name}; there are: {there}."
        f" A new one needs at least {stem}KIND and {stem}MODEL"
    )


def _define_providers(data: dict[str, Any], variables: list[str]) -> None:
    """Add those that the environment alone defines, which it does by kind and model."""
    providers = data.get("providers", [])
    if not isinstance(providers, list):
        return
    known = {_env_name(name) for name, _ in _named(providers)}
    for variable in variables:
        kind = re.fullmatch(rf"({_ENV_PREFIX}PROVIDERS__(.+))__KIND", variable)
        if kind and f"{kind[1]}__MODEL" in variables and kind[2].lower() not in known:
            data.setdefault("providers", providers).append({"name": kind[2].lower()})


def _named(providers: list[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in providers:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            yield entry["name"], entry


def _env_name(name: str) -> str:
    """A name as it stands in an environment variable, in lower case."""
    return re.sub(r"[^a-z0-9]", "_", name.lower())


# --- what is wrong --------------------------------------------------------------------------------------


def _refuse(data: Mapping[str, Any], found: Origin) -> NoReturn:
    """Say in the user's words what msgspec says in its own."""
    fault = wording.first_fault(data, Settings)
    assert fault is not None, "msgspec refuses what every single key allows"
    key, says = fault.key, fault.says
    name = key.rpartition(".")[2]
    homes = [
        section
        for section, struct in _hints(Settings).items()
        if isinstance(struct, type) and name in getattr(struct, "__struct_fields__", ())
    ]
    if says.startswith("is no ") and len(homes) == 1:
        says = f"is no setting; {name} belongs into [{homes[0]}]"
    raise found.error(key, says)


#: Addresses at which only this machine is listened to.
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _check(settings: Settings, found: Origin) -> None:
    """Contradictions that no single value's type shows."""
    names: list[str] = []
    for provider in settings.providers:
        _check_provider(provider, found)
        _check_name(provider.name, names, found)
        names.append(provider.name)
    for task_type, task in settings.tasks.items():
        _check_task(task, f"tasks.{task_type}.providers", names, found)
    _check_servers(settings, found)
    if settings.retry.base_s > settings.retry.max_s:
        raise found.error("retry.base_s", "must not be greater than retry.max_s", "retry.max_s")
    _check_watched("flower", settings.flower, found)
    if settings.metrics.enabled:
        _check_watched("metrics", settings.metrics, found)
    if settings.api.host not in LOOPBACK and not settings.api.tokens:
        raise found.error(
            "api.tokens",
            "is required when api.host is not loopback; set LLMTASKS_API__TOKENS=TENANT:TOKEN, or"
            " api.host to 127.0.0.1",
            "api.host",
        )
    _check_retention(settings.retention, found)


def _check_watched(name: str, section: Flower | Metrics, found: Origin) -> None:
    """What listens beyond this machine asks for a password."""
    if section.host not in LOOPBACK and not section.password:
        raise found.error(
            f"{name}.password",
            f"is required when {name}.host is not loopback; set LLMTASKS_{name.upper()}__PASSWORD, or"
            f" {name}.host to 127.0.0.1",
            f"{name}.host",
        )


def _check_retention(keep: Retention, found: Origin) -> None:
    if keep.documents_days is not None and keep.texts_days is None:
        raise found.error(
            "retention.texts_days",
            "is required with retention.documents_days: the texts of documents go by it",
            "retention.documents_days",
        )


def _check_servers(settings: Settings, found: Origin) -> None:
    broker, redis, database = settings.broker.url, settings.redis.url, settings.database.url
    if broker is not None:
        _check_redis(broker, "broker.url", ("redis", "rediss", "redis+socket"), found)
    if redis is not None:
        _check_redis(redis, "redis.url", ("redis", "rediss", "unix"), found)
    elif broker is not None and broker.startswith("redis+socket"):
        raise found.error(
            "redis.url",
            "is required with a broker on a socket, as in unix:///PATH?db=1",
            "broker.url",
        )
    if settings.redis.cluster:
        _check_cluster(settings, found)
    if database is not None:
        _check_database(database, found)


def _check_cluster(settings: Settings, found: Origin) -> None:
    """A cluster is one of TCP servers, has a single database, and is not the broker."""
    key, cause = "redis.url", "redis.cluster"
    if settings.redis.url is None:
        raise found.error(
            key, "is required with redis.cluster: the broker cannot be a cluster", cause
        )
    parts = urlsplit(settings.redis.url)
    if parts.scheme == "unix":
        raise found.error(
            key, "must start with redis:// or rediss:// where redis.cluster is true", cause
        )
    if parts.path.strip("/0"):
        raise found.error(key, "must end with /0: a cluster has no other database", cause)
    broker = urlsplit(settings.broker.url or "")
    if (parts.hostname, parts.port or 6379) == (broker.hostname, broker.port or 6379):
        raise found.error(
            "broker.url",
            "is a node of the cluster in redis.url, which cannot carry messages; give the broker a"
            " server of its own, or set redis.cluster to false",
            cause,
        )


def _check_name(name: str, taken: list[str], found: Origin) -> None:
    for other in taken:
        if _env_name(other) == _env_name(name):
            raise found.error(
                f"providers.{name}.name",
                "is used twice; give one another name"
                if other == name
                else f"cannot be told from {other} in environment variables; give it another name",
            )


def _check_provider(provider: Provider, found: Origin) -> None:
    key = f"providers.{provider.name}"
    if provider.api_key_env is None and provider.base_url is None:
        raise found.error(
            f"{key}.api_key_env",
            "is required without a base_url: name the environment variable that holds the key",
            f"{key}.kind",
        )
    if provider.api_key_env is not None and wording.looks_like_a_key(provider.api_key_env):
        raise found.error(
            f"{key}.api_key_env", f"must be {wording.allowed(Variable)}, and this looks like one"
        )
    if provider.base_url is not None:
        _check_base_url(provider, provider.base_url, found)
    split = [name for name in ("input", "output") if getattr(provider, f"{name}_tokens_per_minute")]
    if provider.tokens_per_minute and split:
        raise found.error(
            f"{key}.tokens_per_minute",
            "contradicts input_tokens_per_minute and output_tokens_per_minute; give the one or the"
            " others",
            *(f"{key}.{name}_tokens_per_minute" for name in split),
        )


#: What the SDKs add by themselves.
_ENDPOINT = re.compile(r"/(chat/completions|completions|responses|messages)/?$")


def _check_base_url(provider: Provider, base_url: str, found: Origin) -> None:
    key = f"providers.{provider.name}.base_url"
    parts = _url(base_url, key, ("http", "https"), found)
    _check_host(parts, key, found)
    if endpoint := _ENDPOINT.search(parts.path):
        raise found.error(key, f"must end before {endpoint[0]}, which is added to it")
    if parts.hostname == "api.openai.com" and not parts.path.startswith("/v1"):
        raise found.error(key, "must end with /v1 at OpenAI; or remove it, that is the default")


def _check_task(task: Task, key: str, names: list[str], found: Origin) -> None:
    for name in task.providers or ():
        if name not in names:
            hint = wording.did_you_mean(name, names) or ";"
            known = ", ".join(names) or "none"
            raise found.error(key, f"no provider is named {name!r}{hint} there are: {known}")
    if task.providers is not None and not task.providers:
        raise found.error(key, "is empty; name one, or remove the key")


def _check_redis(url: str, key: str, schemes: tuple[str, ...], found: Origin) -> None:
    parts = _url(url, key, schemes, found)
    if parts.scheme in ("redis", "rediss"):
        _check_host(parts, key, found)
        if not re.fullmatch(r"/?|/\d{1,5}", parts.path):
            raise found.error(key, "its path must be a database number, as in /0")
    elif parts.netloc or len(parts.path) <= 1:
        raise found.error(
            key, f"must name the socket's path, as in {parts.scheme}:///run/valkey.sock"
        )


def _check_database(url: str, found: Origin) -> None:
    key = "database.url"
    parts = _url(url, key, ("postgresql", "postgresql+psycopg", "sqlite"), found)
    if parts.scheme != "sqlite":
        _check_host(parts, key, found, required=False)
    elif parts.netloc:
        raise found.error(key, "has the file where a host stands; write sqlite:////ABSOLUTE/PATH")
    elif parts.path in ("", "/", "/:memory:"):
        raise found.error(key, "SQLite needs a file that all processes share: sqlite:////PATH")


def _url(url: str, key: str, schemes: tuple[str, ...], found: Origin) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise found.error(key, "is no URL") from None
    if parts.scheme not in schemes or not url.lower().startswith(f"{parts.scheme}://"):
        raise found.error(key, f"must start with {_either([f'{one}://' for one in schemes])}")
    if re.search(r"\s", url):
        raise found.error(key, "holds a blank; write it as %20 where it is meant")
    return parts


def _either(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}"


def _check_host(parts: SplitResult, key: str, found: Origin, *, required: bool = True) -> None:
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or (required and not parts.hostname):
        raise found.error(key, "names no host, or no port from 1 to 65535")
