"""Every Prometheus metric, defined once. The names are a contract with people's dashboards."""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import socket
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app
from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds. Models answer between a tenth of a second (a short self-hosted answer) and minutes.
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)

#: Seconds. A first token comes within a fraction of a second, or after the wait in a busy server's line.
FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60)

#: Close around 1, where an estimate was right.
ESTIMATE_BUCKETS = (0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.5, 2, 3)

#: Ports tried after the configured one: that many worker processes may share a host.
PORTS = 100

request_duration = Histogram(
    "llm_request_duration_seconds",
    "Time of a model call, from sending it to its whole answer or its failure.",
    ["model", "provider"],
    buckets=LATENCY_BUCKETS,
)
time_to_first_token = Histogram(
    "llm_time_to_first_token_seconds",
    "Time of a streamed model call, from sending it to the first token of its answer.",
    ["model", "provider"],
    buckets=FIRST_TOKEN_BUCKETS,
)
tokens = Counter("llm_tokens", "Tokens that providers counted.", ["model", "type"])
active_requests = Gauge("llm_active_requests", "Model calls in flight.", ["model"])
cache_hits = Counter(
    "llm_cache_hits",
    "Questions by whether their answer was already there (hit) or had to be asked (miss).",
    ["result"],
)
api_streams = Gauge("llm_api_streams", "Streams of events that a server of the API sends.")
single_flight = Counter(
    "llm_single_flight",
    "Shared questions by whether this process asked (led) or waited for somebody's answer (followed).",
    ["role"],
)
calls = Counter("llm_calls", "Model calls by how they ended.", ["provider", "model", "outcome"])
retries = Counter(
    "llm_retries",
    "Failures after which a question, or a document of a source, is asked for again, by their kind.",
    ["reason"],
)
input_token_estimate = Histogram(
    "llm_input_token_estimate_ratio",
    "Input tokens that were estimated, as a multiple of those that the provider counted.",
    ["provider", "model"],
    buckets=ESTIMATE_BUCKETS,
)
cost = Counter(
    "llm_cost_usd",
    "US dollars that model calls cost, where that is known.",
    ["provider", "model"],
)
unpriced_calls = Counter(
    "llm_unpriced_calls",
    "Model calls of unknown cost: the model's price is unknown, or whether the call was paid (usage).",
    ["provider", "model", "reason"],
)
jobs = Counter("llm_jobs", "Runs of jobs by how they ended.", ["task_type", "state"])

taken_over_jobs = Counter(
    "llm_taken_over_jobs",
    "Jobs taken from dead workers: sent again (requeued), or failed after too many deaths.",
    ["outcome"],
)
lost_workers = Counter(
    "llm_lost_workers", "Worker processes whose lease ran out, as found by this one."
)

database_up = Gauge("llm_database_up", "1 while the database answers this process, else 0.")

#: The broker's own count.
queue_messages = Gauge(
    "llm_queue_messages",
    "Messages in a queue of the broker that no worker has taken.",
    ["queue"],
)

provider_limit = Gauge(
    "llm_provider_limit_per_minute",
    "What a provider may be asked for in a minute, as configured.",
    ["provider", "dimension"],
)
provider_effective_limit = Gauge(
    "llm_provider_effective_limit_ratio",
    "Share of a provider's configured limits that is used.",
    ["provider"],
)
provider_quota_used = Counter(
    "llm_provider_quota_used",
    "Requests and tokens that calls took of a provider's limits, as the provider counts them.",
    ["provider", "dimension"],
)
provider_promised = Gauge(
    "llm_provider_promised_seconds",
    "How far ahead a provider's quota is promised.",
    ["provider", "dimension"],
)
provider_in_flight = Gauge(
    "llm_provider_in_flight", "Calls in flight, where they are limited.", ["provider"]
)
provider_waiting = Gauge("llm_provider_waiting", "Calls in a provider's line.", ["provider"])
provider_opening = Gauge(
    "llm_provider_next_opening_seconds",
    "Until a provider may be called again; 0 for now.",
    ["provider"],
)
provider_state = Gauge(
    "llm_provider_state",
    "1 for the state that a provider is in, 0 for the others.",
    ["provider", "state"],
)

admission_state = Gauge(
    "llm_admission_state",
    "1 for who decides on calls: the fleet, this process alone, or nobody (Redis is away).",
    ["state"],
)

#: How providers stand for the fleet.
_OF_PROVIDERS = (
    provider_limit,
    provider_effective_limit,
    provider_promised,
    provider_in_flight,
    provider_waiting,
    provider_opening,
    provider_state,
)

for _counter, *_values in (  # a rate over a counter that does not exist yet is no zero
    (cache_hits, "hit", "miss"),
    (single_flight, "led", "followed"),
    (taken_over_jobs, "requeued", "failed"),
):
    for _value in _values:
        _counter.labels(_value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A metric as `/metrics` shows it: its full name, its type, its labels, what it says."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Picture(Collector):
    """Gauges that are seen at once: all of them shown anew, or none. A scrape never meets half of it.

    Args:
        gauges: By name, their labels and what they say.
    """

    def __init__(self, gauges: Mapping[str, tuple[tuple[str, ...], str]]) -> None:
        self._gauges = gauges
        self._shown: Mapping[str, Mapping[tuple[str, ...], float]] = {}
        REGISTRY.register(self)

    def show(self, values: Mapping[str, Mapping[tuple[str, ...], float]]) -> None:
        """Show these: by name, by the values of the labels. Whatever is not among them is gone."""
        self._shown = values

    def hide(self) -> None:
        """Show nothing: absent is better than stale."""
        self._shown = {}

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """The gauges without values."""
        return [
            GaugeMetricFamily(name, text, labels=labels)
            for name, (labels, text) in self._gauges.items()
        ]

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """The gauges, for a scrape."""
        shown = self._shown
        for name, rows in shown.items():
            labels, text = self._gauges[name]
            family = GaugeMetricFamily(name, text, labels=labels)
            for row, value in rows.items():
                family.add_metric(row, value)
            yield family

    def described(self) -> Iterator[Described]:
        """The gauges in words."""
        for name, (labels, text) in self._gauges.items():
            yield Described(name=name, kind="gauge", labels=labels, help=text)


#: What the database holds, as every worker process sees it now and then: take the maximum, not the sum.
census = Picture(
    {
        "llm_open_jobs": (("task_type", "state"), "Jobs that have not ended."),
        "llm_oldest_queued_job_seconds": (
            ("task_type",),
            "Since the oldest job that is queued was submitted.",
        ),
        "llm_undelivered_jobs": ((), "Ended jobs that are still to be delivered to the sink."),
        "llm_workers": ((), "Worker processes whose lease is valid."),
        "llm_worker_slots": (
            ("task_type",),
            "Slots of live workers that serve a task type. One that serves several counts for each.",
        ),
        "llm_census_duration_seconds": ((), "How long the last count of open jobs took."),
    }
)


def catalogue() -> list[Described]:
    """Every metric of ours, by name."""
    public = [value for name, value in globals().items() if not name.startswith("_")]
    own = [one for one in public if isinstance(one, Counter | Gauge | Histogram)]
    found = [*map(_described, own), *census.described()]
    return sorted(found, key=lambda one: one.name)


def _described(metric: Counter | Gauge | Histogram) -> Described:
    (family,) = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = tuple(metric._labelnames)  # noqa: SLF001  # there is no other way to ask
    return Described(name=name, kind=family.type, labels=labels, help=family.documentation)


def count_quota(provider: str, charged: Mapping[str, float]) -> None:
    """Count what one call took of a provider's limits, by dimension."""
    for dimension, units in charged.items():
        provider_quota_used.labels(provider, dimension).inc(units)


def hide_queue(queue: str) -> None:
    """The broker does not say what it holds of this queue."""
    queue_messages.remove(queue)


def show_admission(state: str) -> None:
    """Who decides on calls now: `fleet`, `alone` or `away`. How the fleet stands is unknown but to itself."""
    for one in ("fleet", "alone", "away"):
        admission_state.labels(one).set(one == state)
    if state != "fleet":
        for gauge in _OF_PROVIDERS:
            gauge.clear()


def count_cost(provider: str, model: str, cost_usd: float | None, *, is_counted: bool) -> None:
    """Count what a call cost; what is not known is never counted as nothing.

    `is_counted`: the provider told its tokens, so that only the price can be unknown.
    """
    if cost_usd is not None:
        cost.labels(provider, model).inc(cost_usd)
    else:
        unpriced_calls.labels(provider, model, "price" if is_counted else "usage").inc()


#: Answers to anybody that the endpoint is there, and nothing else; Flower's has the same name.
HEALTH_PATH: Final = "/healthcheck"


class Exporter:
    """A running metrics endpoint. `login` is what has to be known to read it: a user and a password."""

    def __init__(self, host: str, port: int, login: tuple[str, str] | None = None) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

        class Server(ThreadingWSGIServer):
            address_family = family

        app = _healthy(_guarded(make_wsgi_app(REGISTRY), login))
        self._server = make_server(str(address[0]), port, app, Server, handler_class=_Silent)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="llmtasks-metrics", daemon=True
        )
        self._thread.start()
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=2.0)


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name
        """Log nothing."""


def _healthy(app: WSGIApplication) -> WSGIApplication:
    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != HEALTH_PATH:
            return app(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"OK"]

    return answer


def _guarded(app: WSGIApplication, login: tuple[str, str] | None) -> WSGIApplication:
    """Basic auth before the app, where there is a login."""
    if login is None:
        return app
    wanted = ":".join(login).encode()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if hmac.compare_digest(credentials(environ.get("HTTP_AUTHORIZATION", "")), wanted):
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="metrics"')])
        return [b""]

    return answer


def credentials(header: str) -> bytes:
    """`user:password` of an Authorization header; nothing where it holds none."""
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


def serve(host: str, port: int, login: tuple[str, str] | None = None) -> Exporter:
    """Serve this process' metrics on the first free port from `port` (0: any), to whoever knows the login.

    Each worker process of a host gets an endpoint of its own: counters of two processes behind one
    port would jump back and forth.

    Raises:
        OSError: no port of the range is free, or the host is not ours.
    """
    last: OSError | None = None
    for candidate in range(port, port + PORTS) if port else (0,):
        try:
            return Exporter(host, candidate, login)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            last = error
    assert last is not None
    raise last
