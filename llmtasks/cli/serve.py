"""`llmtasks serve`: the HTTP API in the foreground."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click
import msgspec

from llmtasks import checks, logs
from llmtasks.errors import ConfigurationError
from llmtasks.settings import LOOPBACK, Settings, current

_log = logs.get("api")


@click.command()
@click.option("--host", help="The address to listen on; default from the settings: loopback.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Default from the settings: 8000.")
def serve(host: str | None, port: int | None) -> None:
    """Serve the HTTP API in the foreground, described by /openapi.json.

    Any number of servers may run beside each other. SIGTERM (or Ctrl-C) ends it: event streams end at
    once, requests and chats under way have `[api] drain_s` seconds.
    """
    settings = _with(current(), host, port)
    create_app, stop_streams, uvicorn, protocol = _installed()
    logs.configure(settings.log.level)
    ready = checks.ready(settings)
    from llmtasks.store.process import database

    with contextlib.ExitStack() as closing:
        if settings.embedded:
            from llmtasks.local import EmbeddedServer

            server = EmbeddedServer(settings)
            server.start()
            closing.callback(server.stop)
        database()
        listening = closing.enter_context(_listening(settings))
        app = create_app(settings, ready.keys)

        class Server(uvicorn.Server):  # type: ignore[misc,name-defined]  # imported where it is needed
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                self.should_exit or stop_streams(app)
                super().handle_exit(sig, frame)

        config = uvicorn.Config(
            app,
            http=protocol,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.api.drain_s)),
        )
        name, number = listening.getsockname()[:2]
        shown = f"[{name}]" if ":" in name else name
        print(f"llmtasks: serving on http://{shown}:{number}", flush=True)
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, _stopped)
        Server(config).run(sockets=[listening])


def _stopped(_number: int, _frame: FrameType | None) -> None:
    """What uvicorn raises again once it has stopped in order: then there is nothing left to do."""


def _with(settings: Settings, host: str | None, port: int | None) -> Settings:
    given: dict[str, Any] = {"host": host, "port": port}
    changed = {name: value for name, value in given.items() if value is not None}
    api = msgspec.structs.replace(settings.api, **changed)
    if api.host not in LOOPBACK and not api.tokens:
        raise ConfigurationError(
            f"api.tokens: is required to listen on {api.host}; set LLMTASKS_API__TOKENS=TENANT:TOKEN"
        )
    return msgspec.structs.replace(settings, api=api)


def _installed() -> tuple[Any, Any, Any, Any]:
    try:
        import uvicorn

        from llmtasks.api.app import create_app, stop_streams
        from llmtasks.api.protocol import HTTP
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"llmtasks serve: {error.name} is not installed; pip install 'llmtasks[api]'"
        ) from None
    return create_app, stop_streams, uvicorn, HTTP


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """The server's socket.

    Raises:
        ConfigurationError: the address cannot be listened on.
    """
    host, port = settings.api.host, settings.api.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise ConfigurationError(
            f"api.port: cannot listen on {host}:{port}: {error.strerror}"
        ) from None
    with listening:
        yield listening
