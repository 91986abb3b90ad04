"""Celery's consumer, made to survive one way of losing its broker."""

from __future__ import annotations

from celery.worker import consumer

from llmtasks import logs

_log = logs.get("worker")


class Consumer(consumer.Consumer):  # type: ignore[misc]  # Celery ships no types
    """Reconnects although the lost connection cannot be closed in order.

    Celery 5.7 first collects a lost connection and then closes it; kombu 5.7 then hands unacknowledged
    messages back through what was collected, and fails with an AttributeError that ends the worker. Those
    messages are no loss: their rows are sent again.
    """

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let go of the connection; `start` then connects anew."""
        try:
            super().on_connection_error_after_connected(exc)
        except AttributeError as error:
            logs.warning(_log, "broker-lost", at=logs.place(error))
            self.connection = None
