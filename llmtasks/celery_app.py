"""The Celery seam: the app, publishing, and the depth of a queue. Importing connects to nothing."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from llmtasks import logs
from llmtasks.task_types import queue as queue_of

#: The one task's name, as other programs send it.
TASK_NAME = "llmtasks.process_document"

#: The queue of messages that only tell callers how a job ended. Every worker consumes it, also while the
#: queue of the job's type rests. No task type's queue can be named like it.
TOLD_QUEUE = "llmtasks.told"

#: The broker's own priorities (0 is first): direct jobs stand before fed ones, nothing more.
DIRECT_PRIORITY = 0
FED_PRIORITY = 3

#: The header of a message whose job SQL knew: when it was sent, in seconds since the epoch.
SENT_AT = "llmtasks_sent_at"

#: Seconds to wait for a connection of maintenance's own.
CONNECT_S = 2.0

_log = logs.get("celery")

app = Celery("llmtasks", config_source="llmtasks.celery_config", set_as_current=False)


class BrokerAway(Exception):  # an answer of this seam, not a failure of a job
    """The broker did not take the message in time."""


class Publisher:
    """Publishes on a thread of its own, so that a broker that is away costs its caller a bounded time.

    redis-py retries a connection up to ten times with growing pauses; a producer that has committed its
    row has nothing to wait for. After a failure, further messages are refused at once until the thread
    is free again.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]]] = (
            queue.SimpleQueue()
        )
        self._late: queue.SimpleQueue[Any] | None = None
        self._thread = threading.Thread(target=self._run, name="llmtasks-publish", daemon=True)
        self._thread.start()

    def __call__(self, publish: Callable[[], Any]) -> Any:
        """Run `publish`; its result.

        Raises:
            BrokerAway: It did not end in time, or the broker refused. It may still arrive, which is
                harmless: a message is only a doorbell.
        """
        if self._late is not None and self._late.empty():
            raise BrokerAway("the broker has not answered an earlier message yet")
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work.put((publish, answer))
        try:
            ok, value = answer.get(timeout=self._timeout_s)
        except queue.Empty:
            self._late = answer
            raise BrokerAway(f"the broker did not answer within {self._timeout_s} s") from None
        if ok:
            return value
        if isinstance(value, (OperationalError, OSError, ConnectionError)) or _is_redis(value):
            raise BrokerAway(f"the broker refused: {type(value).__name__}") from value
        raise value

    def later(self, action: Callable[[], Any]) -> None:
        """Do it when the thread is free; not at all while the broker is away."""
        if self._late is None or not self._late.empty():
            self._work.put((action, queue.SimpleQueue()))

    def _run(self) -> None:
        while True:
            publish, answer = self._work.get()
            try:
                answer.put((True, publish()))
            except BaseException as error:  # noqa: BLE001  # handed to the caller as it is
                answer.put((False, error))


def _is_redis(error: BaseException) -> bool:
    """A redis-py error, without importing redis here: it is the transport's business."""
    return type(error).__module__.split(".")[0] == "redis"


_publisher: Publisher | None = None
_publisher_lock = threading.Lock()


def _forget_publisher() -> None:
    """A child has neither its parent's thread nor the right to its parent's lock."""
    global _publisher, _publisher_lock  # per process
    _publisher, _publisher_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_publisher)


def bounded(publish: Callable[[], Any], timeout_s: float) -> Any:
    """Publish through this process' publisher thread; see `Publisher`."""
    global _publisher  # noqa: PLW0603  # one thread per process; it does not survive a fork
    with _publisher_lock:
        if _publisher is None:
            _publisher = Publisher(timeout_s)
        publisher = _publisher
    return publisher(publish)


def later(action: Callable[[], Any]) -> None:
    """Do a small thing on this process' publisher thread, if it has one; see `Publisher.later`."""
    # No lock: this is called while objects are dropped, perhaps by the thread that holds it.
    if (publisher := _publisher) is not None:
        publisher.later(action)


def send(
    producer: Any,
    *,
    job_id: str,
    args: tuple[str, str],
    kwargs: Mapping[str, Any],
    shown: str,
    keep_result: bool,
    group_id: str | None,
    canvas: Mapping[str, Any] | None,
    queue: str | None = None,
) -> None:
    """Publish a job that SQL knows, below `send_task`: that would subscribe this worker to its result.

    Without a `queue` into that of its task type. `shown` is what those who watch see of `kwargs`.
    """
    again = dict(canvas or {})
    message = app.amqp.create_task_message(
        job_id,
        TASK_NAME,
        args,
        dict(kwargs),
        group_id=group_id,
        ignore_result=not keep_result,
        kwargsrepr=shown,
        callbacks=again.pop("link", None),
        errbacks=again.pop("link_error", None),
        create_sent_event=True,
        **again,
    )
    app.amqp.send_task_message(
        producer,
        TASK_NAME,
        message,
        headers={SENT_AT: time.time()},
        queue=queue or queue_of(args[1]),
        priority=DIRECT_PRIORITY if keep_result else FED_PRIORITY,
        retry=False,
    )


def depth(task_type: str) -> int:
    """Messages that the broker holds for a task type and no worker has taken yet.

    On a connection of its own: one of the pool that breaks while it is borrowed is handed out broken
    ever after (kombu 5.7).
    """
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_S)
        with connection.channel() as channel:
            # An undeclared queue is an empty one.
            return int(channel._size(queue_of(task_type)))  # noqa: SLF001  # kombu's virtual transports
