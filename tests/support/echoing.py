"""A provider that repeats in every place of its answers what it was sent: the key, and the whole request.

Which way it fails a document's text says, as in `case:500 ...`; a text without a case is answered.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_CASE = re.compile(r"case:([\w-]+)")

#: (status, code, is it over after the first time, seconds of Retry-After)
_ERRORS: dict[str, tuple[int, str, bool, float | None]] = {
    "pause": (429, "rate_limit_exceeded", True, 0.2),
    "park": (429, "rate_limit_exceeded", True, 30.0),
    "broke": (429, "insufficient_quota", False, None),
    "denied": (401, "invalid_api_key", False, None),
    "rejected": (400, "invalid_request_error", False, None),
    "window": (400, "context_length_exceeded", False, None),
    "down": (503, "overloaded_error", False, None),
}
_ENDS = {
    "truncated": ("length", "max_tokens"),
    "refused": ("content_filter", "refusal"),
}


class Echoing:
    """The running provider. `held` counts the calls that it lets wait, for ever."""

    def __init__(self, port: int, answer: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.openai_url = f"{self.url}/v1"
        self.anthropic_url = self.url
        self.answer = answer
        self.held = 0
        self.seen: collections.Counter[str] = collections.Counter()
        self.closing = threading.Event()


@contextlib.contextmanager
def echoing(answer: str) -> Iterator[Echoing]:
    """Run one whose good answers are this text (and, where a schema was given, an entity of it)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    provider = Echoing(server.server_port, answer)
    server.provider = provider  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield provider
    finally:
        provider.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["content-length"])).decode()
        provider: Echoing = self.server.provider  # type: ignore[attr-defined]
        found = _CASE.search(sent)
        case = found[1] if found else ""
        provider.seen[sent] += 1
        if case == "hang" or (case == "crash" and provider.seen[sent] == 1):
            provider.held += 1
            provider.closing.wait()
            return
        status, code, once, pause = _ERRORS.get(case, (200, "", False, None))
        if status != 200 and not (once and provider.seen[sent] > 1):
            self._error(sent, status, code, pause)
        elif case == "garbage":
            self._send(200, f"{self._key()} {sent}")
        else:
            self._answer(json.loads(sent), case, provider.answer)

    def _error(self, sent: str, status: int, code: str, pause: float | None) -> None:
        told = f"you sent {self._key()} and {sent}"
        error = {"message": told, "type": code, "code": code, "param": self._key(), "hint": told}
        headers = {} if pause is None else {"retry-after": str(pause)}
        self._send(status, json.dumps({"type": "error", "error": error, "input": told}), headers)

    def _answer(self, asked: dict[str, Any], case: str, answer: str) -> None:
        openai, anthropic = _ENDS.get(case, ("stop", "end_turn"))
        if case == "invalid":
            text = " ".join([answer, *("word" for _ in range(2000))])
        elif "response_format" in asked or "output_config" in asked:
            text = json.dumps({"entities": [{"text": answer, "type": "person"}]})
        else:
            text = answer
        if self.path.endswith("/messages"):
            reply: dict[str, Any] = {
                "content": [{"type": "text", "text": text}],
                "stop_reason": anthropic,
                "usage": {"input_tokens": 5, "output_tokens": 5},
            }
        else:
            message = {"role": "assistant", "content": text}
            reply = {
                "choices": [{"index": 0, "message": message, "finish_reason": openai}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 5},
            }
        self._send(200, json.dumps({"id": self._key(), "model": self._key(), **reply}))

    def _send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status, self._key())
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body.encode())))
        self.send_header("x-request-id", self._key())
        self.send_header("request-id", self._key())
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the caller has gone
            self.wfile.write(body.encode())

    def _key(self) -> str:
        return (self.headers["authorization"] or self.headers["x-api-key"]).removeprefix("Bearer ")

    def log_message(self, *_: object) -> None:
        """Say nothing."""
