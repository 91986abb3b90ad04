"""A worker outlives its broker, also where closing the lost connection fails."""

from __future__ import annotations

from kombu import Connection

from workers.consumer import Consumer


class Unclosable(Connection):
    """As kombu 5.7 leaves a Redis connection that was collected with messages unacknowledged."""

    def close(self) -> None:
        raise AttributeError("'NoneType' object has no attribute 'hostname'")

    release = close


def test_a_lost_connection_that_cannot_be_closed_is_let_go():
    consumer = Consumer.__new__(Consumer)
    consumer.connection = Unclosable("redis://127.0.0.1:1/0")
    consumer.on_connection_error_after_connected(ConnectionError("closed by server"))
    assert consumer.connection is None
