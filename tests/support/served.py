"""A client of `llmtasks serve`, as a user's program is one."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
from support.stack import Process, Stack, eventually

PATIENCE_S = 60.0


@dataclass(frozen=True)
class Event:
    """A server-sent event with JSON in it; "[DONE]" as it is."""

    kind: str
    id: str
    data: Any


class Served:
    """A running server, asked with a token or without."""

    def __init__(self, process: Process, client: httpx2.Client, token: str | None = None) -> None:
        self.process = process
        self.url = str(client.base_url).rstrip("/")
        self.client = client
        self.headers = {} if token is None else {"authorization": f"Bearer {token}"}

    def with_token(self, token: str | None) -> Served:
        return Served(self.process, self.client, token)

    def request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        """One request, with the token if there is one."""
        headers = {**self.headers, **request.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **request)

    def ask(self, method: str, path: str, status: int = 200, **request: Any) -> Any:
        """The JSON of an answer that must have this status."""
        answer = self.request(method, path, **request)
        assert answer.status_code == status, (answer.status_code, answer.text)
        return answer.json()

    def get(self, path: str, status: int = 200, **request: Any) -> Any:
        return self.ask("GET", path, status, **request)

    def post(self, path: str, body: Any = None, status: int = 200, **request: Any) -> Any:
        sent = {} if body is None else {"json": body}
        return self.ask("POST", path, status, **sent, **request)

    @contextlib.contextmanager
    def events(self, method: str, path: str, **request: Any) -> Iterator[Iterator[Event]]:
        """The events of a stream, as they come."""
        headers = {**self.headers, **request.pop("headers", {})}
        with self.client.stream(method, path, headers=headers, **request) as answer:
            if answer.status_code != 200:
                answer.read()
            assert answer.status_code == 200, answer.text
            yield _events(answer)

    def all_events(self, method: str, path: str, **request: Any) -> list[Event]:
        with self.events(method, path, **request) as events:
            return list(events)


def _events(answer: httpx2.Response) -> Iterator[Event]:
    for one in httpx2.EventSource(answer):
        if one.data:
            data = one.data if one.data == "[DONE]" else json.loads(one.data)
            yield Event(one.event, one.id, data)


def serve(stack: Stack, *argv: str, token: str | None = None) -> Served:
    """Start `llmtasks serve` on a free port."""
    process = stack.start(
        [sys.executable, "-m", "llmtasks", "serve", "--port", "0", *argv], "serve"
    )
    said = "llmtasks: serving on "
    eventually(lambda: said in process.output() or not process.running, "the server listens")
    assert process.running, process.output()
    url = process.output().partition(said)[2].split()[0]
    client = stack.ending.enter_context(httpx2.Client(base_url=url, timeout=PATIENCE_S))
    served = Served(process, client, token)
    eventually(lambda: _is_up(served), "the server answers")
    return served


def _is_up(served: Served) -> bool:
    with contextlib.suppress(httpx2.HTTPError):
        return served.client.get("/health").status_code == 200
    return False


def text_of(events: list[Event]) -> str:
    """What a client has on its screen at the end."""
    text = ""
    for one in events:
        if one.kind == "reset":
            text = ""
        elif one.kind == "message" and isinstance(one.data, dict) and "token" in one.data:
            text += one.data["token"]
    return text


def ended(events: list[Event]) -> bool:
    """Whether a stream came to its end, and only there."""
    return [one.data for one in events].count("[DONE]") == 1 and events[-1].data == "[DONE]"
