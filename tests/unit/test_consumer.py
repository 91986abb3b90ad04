"""A worker outlives its broker, also where closing the lost connection fails."""

from __future__ import annotations

import logging

import pytest
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


@pytest.mark.parametrize("settle", ["ack_log_error", "reject_log_error"])
def test_a_job_that_ends_after_its_connection_ends_no_worker(valkey, settle):
    connection = Connection(valkey.url)
    queue = connection.SimpleQueue("left-behind")
    queue.put("hello")
    message = queue.get(timeout=10)
    connection.collect()
    message.channel._disconnect_pools()  # the server ended
    with pytest.raises(AttributeError):  # what kombu makes of it
        getattr(message, settle)(logging.getLogger(), connection.connection_errors)

    consumer = Consumer.__new__(Consumer)
    consumer.hub = None
    consumer.call_soon_ack(
        getattr(message, settle), logging.getLogger(), connection.connection_errors
    )


def test_a_message_of_a_living_connection_is_acknowledged(valkey):
    with Connection(valkey.url) as connection:
        queue = connection.SimpleQueue("alive")
        queue.put("hello")
        message = queue.get(timeout=10)
        consumer = Consumer.__new__(Consumer)
        consumer.hub = None
        consumer.call_soon_ack(
            message.ack_log_error, logging.getLogger(), connection.connection_errors
        )
        assert message.acknowledged
        queue.close()


def test_a_message_that_cannot_be_read_is_refused_and_ends_no_worker():
    def unreadable(*_: object) -> None:
        raise TypeError("argument of type 'int' is not iterable")

    consumer = Consumer.__new__(Consumer)
    consumer.strategies = {"ours": unreadable}
    consumer.on_task_message = set()
    consumer.connection_errors = (ConnectionError,)
    consumer._maximum_prefetch_restored = True
    handle = consumer.create_task_handler()
    with Connection("memory://") as connection, connection.SimpleQueue("hostile") as queue:
        queue.put(7, headers={"task": "ours", "id": "a"})
        message = queue.get(timeout=5)
        handle(message)
        assert message.acknowledged
        consumer.strategies["ours"] = lambda *_: message.payload and _lost()
        with pytest.raises(ConnectionError):  # that is not the message's fault
            handle(message)


def _lost() -> None:
    raise ConnectionError("closed by server")
