"""HTTP as uvicorn speaks it; and nobody is waited for without end: not who sends half a request, not who does
not read the answer.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from llmtasks.api.errors import answer

#: Seconds for the head of a request, from its first byte; of a new connection, from its beginning.
HEAD_S: Final = 30.0
#: Seconds for which a client may take nothing of what waits to be sent to it.
STALLED_S: Final = 60.0


class HTTP(H11Protocol):
    """A connection. Each one costs a file descriptor, and of those a server has few."""

    _head: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first request."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._got_head()
        self._is_taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; a head that is not whole yet has begun to count."""
        super().data_received(data)
        answering: Any = self.cycle  # None before the first request
        if answering is None or answering.response_complete:
            self._await_head()
        else:
            self._got_head()

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        self._is_taken()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._is_taken()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn says no more than we do
        """In the one shape of errors."""
        if self.conn.our_state is not h11.IDLE and self.conn.our_state is not h11.SEND_RESPONSE:
            self.transport.close()  # an answer was on its way already
            return
        shown = answer(400, "BadRequest", "this is no HTTP request", {"Connection": "close"})
        head: Any = h11.Response(status_code=400, headers=shown.raw_headers, reason=b"Bad Request")
        for part in (head, h11.Data(data=bytes(shown.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_S, self.transport.close)

    def _got_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _is_taken(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
