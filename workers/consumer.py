"""Celery's consumer, made to survive its broker's loss and whatever a message says; its queues may rest."""

from __future__ import annotations

import functools
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.app.trace import build_tracer
from celery.worker import consumer
from kombu.transport import redis
from kombu.transport.virtual import base as transport

from llmtasks import logs
from workers.requests import TraceInfo

_log = logs.get("worker")

#: Seconds before a broker is asked again that refuses: it is full, read-only, or its disk is.
REFUSED_S = 1.0


class Channel(redis.Channel):
    """Keeps one client for its pool. kombu makes one for every acknowledgement and every event, which takes
    longer than what it is made for; all that a client has is the pool.
    """

    _kept: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:  # noqa: FBT001, FBT002  # kombu's own
        if asynchronous:
            return super()._create_client(asynchronous=True)  # type: ignore[no-untyped-call]
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = super()._create_client()  # type: ignore[no-untyped-call]
        return self._kept


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Reconnects although the lost connection can neither be closed nor acknowledged to, and refuses messages
    that Celery cannot read.

    Celery 5.7 first collects a lost connection and then closes it; kombu 5.7 then hands unacknowledged
    messages back through what was collected, and fails with an AttributeError that ends the worker. A job
    that ends after that does the same when it acknowledges its message. Those messages are no loss: of an
    ended job they come again and find its row done, of another its row is sent again.

    A queue that rests is cancelled as Flower would do it, so that Flower shows it and a new connection keeps
    to it (Celery makes its consumers of `consume_from`). The one message that a pending BRPOP still brings
    is given back by kombu, to the end of its line.
    """

    loop: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loop = functools.partial(_reading, self.loop)

    #: Queues that are not to be consumed now, and those that were given up for it.
    _unwanted: frozenset[str] = frozenset()
    _resting: frozenset[str] = frozenset()
    #: Whether the consumer's loop has been asked already to see to that.
    _told: bool = False

    def rest(self, queues: frozenset[str]) -> None:
        """Consume none of these now, and the others again. Any thread may say so.

        To be said again and again: what a lost connection made of the last time is put right.
        """
        self._unwanted = queues
        consumed = self.app.amqp.queues.consume_from
        if self._told:
            return  # it has not come to that yet: its broker may be away
        if self._resting - queues or any(queue in consumed for queue in queues):
            self._told = True
            self.call_soon(self._rest_and_resume)

    def _rest_and_resume(self) -> None:
        """In the consumer's own loop: its channel is nobody else's."""
        self._told = False
        if self.blueprint.state != bootsteps.RUN or self.task_consumer is None:
            return  # it is stopping
        unwanted = self._unwanted
        for queue in self._resting - unwanted:
            self.add_task_queue(queue)
        for queue in unwanted:
            if queue in self.app.amqp.queues.consume_from:
                super().cancel_task_queue(queue)
                self._resting |= {queue}

    def add_task_queue(self, queue: str, *args: Any, **options: Any) -> None:
        """As Celery's. From now on the queue is consumed, also when the broker goes away meanwhile."""
        self._resting -= {queue}
        super().add_task_queue(queue, *args, **options)

    def cancel_task_queue(self, queue: str) -> None:
        """As Celery's: an operator's word, which the end of a rest does not undo."""
        self._resting -= {queue}
        super().cancel_task_queue(queue)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection; `start` then connects anew."""
        self._told = False
        if isinstance(exc, self.channel_errors):
            time.sleep(
                REFUSED_S
            )  # a broker that answers and refuses is there at once, and refuses again
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            logs.warning(_log, "broker-lost", at=logs.place(error))
            self.connection = None

    def ensure_connected(self, conn: Any) -> Any:
        """As Celery's, over channels that keep their client."""
        if type(conn.transport) is redis.Transport:
            conn.transport.Channel = Channel
        return super().ensure_connected(conn)

    def update_strategies(self) -> None:
        """As Celery's; what our tasks end in is told our way."""
        super().update_strategies()
        for name, task in self.app.tasks.items():
            task.__trace__ = build_tracer(
                name, task, self.app.loader, self.hostname, app=self.app, Info=TraceInfo
            )

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """What is done with a message. One that is malformed in a way that Celery 5.7 does not expect (a body
        that is no list, no id, a broken time limit) would end the worker, and the next one after it.
        """
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_refuse(message: Any) -> Any:
            try:
                return handle(message)
            except KeyError as error:  # which kombu counts among the errors of a connection
                refuse(message, error)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001  # whatever reading it raises
                refuse(message, error)
            return None

        def refuse(message: Any, error: Exception) -> None:
            queue = (message.delivery_info or {}).get("routing_key")
            logs.warning(_log, "message-refused", queue=queue, at=logs.place(error))
            message.reject_log_error(_log, self.connection_errors)

        return handle_or_refuse

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge or reject in the consumer's loop, if the message's connection is still there."""
        return super().call_soon_ack(functools.partial(_if_connected, p), *args, **kwargs)


def _reading(loop: Any, *args: Any) -> Any:
    """Run Celery's loop; what it cannot even take apart costs a new connection, not the worker.

    It is out of its queue then. Was it the message of a job, the job's row is sent again.
    """
    try:
        return loop(*args)
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(frame.name == "_brpop_read" for frame in frames):
            raise
        logs.error(_log, "message-unreadable", why=type(error).__name__, at=logs.place(error))
        raise ConnectionResetError("what was read is no message") from error


def _is_news(record: logging.LogRecord) -> bool:
    """That the last message of a queue which rests was put back is none."""
    return record.msg != transport.W_NO_CONSUMERS


transport.logger.addFilter(_is_news)


def _if_connected(settle: Any, *args: Any, **kwargs: Any) -> Any:
    """`settle` is a message's own method, `ack_log_error` or `reject_log_error`."""
    connection = settle.__self__.channel.connection
    if connection is None or connection.client is None:
        logs.info(_log, "message-left", why="its connection is gone")
        return None
    return settle(*args, **kwargs)
