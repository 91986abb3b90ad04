"""Celery's consumer, made to survive two ways of losing its broker, and whatever a message says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

from llmtasks import logs

_log = logs.get("worker")


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Reconnects although the lost connection can neither be closed nor acknowledged to, and refuses messages
    that Celery cannot read.

    Celery 5.7 first collects a lost connection and then closes it; kombu 5.7 then hands unacknowledged
    messages back through what was collected, and fails with an AttributeError that ends the worker. A job
    that ends after that does the same when it acknowledges its message. Those messages are no loss: of an
    ended job they come again and find its row done, of another its row is sent again.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection; `start` then connects anew."""
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            logs.warning(_log, "broker-lost", at=logs.place(error))
            self.connection = None

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        """What is done with a message. One that is malformed in a way that Celery 5.7 does not expect (a body
        that is no list, no id, a broken time limit) would end the worker, and the next one after it.
        """
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_refuse(message: Any) -> Any:
            try:
                return handle(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001  # whatever reading it raises
                logs.warning(_log, "message-refused", at=logs.place(error))
                message.reject_log_error(_log, self.connection_errors)
            return None

        return handle_or_refuse

    def call_soon_ack(self, p: Any, *args: Any, **kwargs: Any) -> Any:
        """Acknowledge or reject in the consumer's loop, if the message's connection is still there."""
        return super().call_soon_ack(functools.partial(_if_connected, p), *args, **kwargs)


def _if_connected(settle: Any, *args: Any, **kwargs: Any) -> Any:
    """`settle` is a message's own method, `ack_log_error` or `reject_log_error`."""
    transport = settle.__self__.channel.connection
    if transport is None or transport.client is None:
        logs.info(_log, "message-left", why="its connection is gone")
        return None
    return settle(*args, **kwargs)
