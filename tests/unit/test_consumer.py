"""A worker outlives its broker, also where closing the lost connection fails, and its queues can rest."""

from __future__ import annotations

import logging
import types
import uuid
from collections import deque

import pytest
from celery import Celery, bootsteps
from kombu import Connection, Queue
from kombu.transport.redis import Transport

from workers.consumer import Consumer, _reading


class Unclosable(Connection):
    """As kombu 5.7 leaves a Redis connection that was collected with messages unacknowledged."""

    def close(self) -> None:
        raise AttributeError("'NoneType' object has no attribute 'hostname'")

    release = close


def test_a_lost_connection_that_cannot_be_closed_is_let_go():
    consumer = Consumer.__new__(Consumer)
    consumer.connection = Unclosable("redis://127.0.0.1:1/0")
    consumer.channel_errors = ()
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


def test_a_workers_channel_keeps_its_client_until_it_has_another_pool(valkey):
    consumer = Consumer.__new__(Consumer)
    consumer.app = Celery(set_as_current=False)
    consumer.first_connection_attempt = True
    with consumer.ensure_connected(Connection(valkey.url)) as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        assert first.connection_pool is channel.pool
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third.connection_pool is channel.pool is not first.connection_pool


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


@pytest.fixture
def resting(valkey):
    """A consumer of two queues without a hub: what it has to do soon, `perform_pending_operations` does."""
    names = [f"{kind}-{uuid.uuid4().hex}" for kind in ("busy", "quiet")]
    consumer = Consumer.__new__(Consumer)
    consumer.app = Celery("resting", broker=valkey.url, set_as_current=False)
    consumer.app.conf.task_queues = [Queue(name) for name in names]
    consumer.hub, consumer._pending_operations = None, deque()
    consumer.blueprint = types.SimpleNamespace(state=bootsteps.RUN)
    with Connection(valkey.url) as connection:
        connect(consumer, connection)
        yield consumer, *names, connection


def connect(consumer, connection):
    """As Celery's bootstep does, the first time and after a loss."""
    consumer.task_consumer = consumer.app.amqp.TaskConsumer(connection.channel())
    consumer.task_consumer.on_message = lambda message: message.ack()
    consumer.task_consumer.consume()


def consumed(consumer):
    return {queue.name for queue in consumer.task_consumer.queues}


def rest(consumer, *queues):
    consumer.rest(frozenset(queues))
    consumer.perform_pending_operations()


def test_a_queue_that_rests_is_not_consumed_until_it_may(resting):
    consumer, busy, quiet, _ = resting
    rest(consumer, busy)
    assert consumed(consumer) == {quiet}
    assert not consumer.task_consumer.consuming_from(busy)
    rest(consumer)
    assert consumed(consumer) == {busy, quiet}
    assert consumer.task_consumer.consuming_from(busy)


def test_nothing_is_done_where_nothing_changes(resting):
    consumer, busy, _, _ = resting
    rest(consumer, busy)
    consumer.rest(frozenset({busy}))
    consumer.rest(frozenset({busy, "of nobody"}))
    assert not consumer._pending_operations


def test_a_rest_survives_a_new_connection_and_ends_on_it(resting):
    consumer, busy, quiet, connection = resting
    rest(consumer, busy, quiet)
    connect(consumer, connection)
    assert consumed(consumer) == set()
    rest(consumer, busy)
    assert consumed(consumer) == {quiet}


def test_a_message_that_arrives_while_its_queue_is_given_up_is_not_lost(resting, caplog):
    consumer, busy, _, connection = resting
    producer = connection.Producer()
    for body in ("first", "second"):
        producer.publish(body, routing_key=busy)
    channel = consumer.task_consumer.channel
    channel.connection.cycle.on_poll_start()  # asks the broker for the next message
    rest(consumer, busy)
    connection.drain_events(timeout=5)
    assert channel._size(busy) == 2
    assert channel.client.hlen("unacked") == 0
    assert {channel.basic_get(busy).payload for _ in range(2)} == {"first", "second"}
    assert not caplog.records


def test_what_an_operator_says_meanwhile_holds_after_the_rest(resting):
    consumer, busy, quiet, _ = resting
    rest(consumer, busy, quiet)
    consumer.cancel_task_queue(busy)
    rest(consumer)
    assert consumed(consumer) == {quiet}


def test_a_worker_that_stops_takes_nothing_up_again(resting):
    consumer, busy, quiet, _ = resting
    rest(consumer, busy)
    consumer.blueprint.state = bootsteps.CLOSE
    rest(consumer)
    assert consumed(consumer) == {quiet}


@pytest.mark.parametrize("reason", [TypeError("no list"), KeyError("id"), ValueError("no limit")])
def test_a_message_that_cannot_be_read_is_refused_and_ends_no_worker(reason):
    def unreadable(*_: object) -> None:
        raise reason

    consumer = Consumer.__new__(Consumer)
    consumer.strategies = {"ours": unreadable}
    consumer.on_task_message = set()
    consumer.connection_errors = Transport.connection_errors
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


@pytest.mark.parametrize("body", ["[" * 100_000, "no json", "7", "[]", "null"])
def test_an_element_that_is_no_message_costs_a_connection_and_ends_no_worker(valkey, body):
    name = uuid.uuid4().hex
    with Connection(valkey.url) as connection:
        channel = connection.default_channel
        Queue(name)(channel).declare()
        channel.client.lpush(name, body)

        def loop() -> None:
            channel.basic_consume(name, False, lambda _message: None, name)
            channel.connection.cycle.on_poll_start()
            connection.drain_events(timeout=5)

        with pytest.raises(ConnectionResetError):
            _reading(loop)


def _lost() -> None:
    raise ConnectionError("closed by server")
