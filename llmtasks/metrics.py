"""Every Prometheus metric, defined once. The names are a contract with people's dashboards."""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import socket
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

#: Seconds. Models answer between a tenth of a second (a short self-hosted answer) and minutes.
LATENCY_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)

#: Ports tried after the configured one: that many worker processes may share a host.
PORTS = 100

request_duration = Histogram(
    "llm_request_duration_seconds",
    "Time of a model call, from sending it to its whole answer or its failure.",
    ["model", "provider"],
    buckets=LATENCY_BUCKETS,
)
tokens = Counter("llm_tokens", "Tokens that providers counted.", ["model", "type"])
active_requests = Gauge("llm_active_requests", "Model calls in flight.", ["model"])
cache_hits = Counter(
    "llm_cache_hits",
    "Questions by whether their answer was already there (hit) or had to be asked (miss).",
    ["result"],
)
calls = Counter("llm_calls", "Model calls by how they ended.", ["provider", "model", "outcome"])
jobs = Counter("llm_jobs", "Runs of jobs by how they ended.", ["task_type", "state"])
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

for _result in ("hit", "miss"):  # a rate over a counter that does not exist yet is no zero
    cache_hits.labels(_result)


def show_admission(state: str) -> None:
    """Who decides on calls now: `fleet`, `alone` or `away`. How the fleet stands is unknown but to itself."""
    for one in ("fleet", "alone", "away"):
        admission_state.labels(one).set(one == state)
    if state != "fleet":
        for gauge in _OF_PROVIDERS:
            gauge.clear()


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
        if hmac.compare_digest(_credentials(environ.get("HTTP_AUTHORIZATION", "")), wanted):
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="metrics"')])
        return [b""]

    return answer


def _credentials(header: str) -> bytes:
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
