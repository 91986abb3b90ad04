"""Celery's settings, each with its reason. Read by Celery at the first use of the app, never on import.

SQL is the truth and a message only a doorbell, so most of this is about ringing promptly, holding little,
and surviving a broker that goes away. Lower-case names are Celery's own.
"""

from __future__ import annotations

from typing import Any

from kombu.entity import Queue as _Queue

from llmtasks import settings as _settings
from llmtasks.celery_app import TOLD_QUEUE as _TOLD_QUEUE
from llmtasks.task_types import names as _names
from llmtasks.task_types import queue as _queue

_current = _settings.current()

# --- where -------------------------------------------------------------------------------------------
broker_url = _current.broker_url
result_backend = _current.result_url
# Results of `delay` and `group` for a day; the truth about them stays in SQL.
result_expires = 86_400
# No key prefix: ids are unique, and a program with a Celery app of its own shall find its results.
# A finished job's result waits for a Redis that is away: its caller would never hear of it otherwise.
result_backend_always_retry = True
result_backend_base_sleep_between_retries_ms = 1_000
# A result read or written must not hang on a dead connection.
redis_socket_timeout = 10.0
redis_backend_health_check_interval = 10
if not result_backend.startswith("redis+socket"):  # what a socket file does not have
    redis_socket_connect_timeout = 2.0
    redis_socket_keepalive = True

# --- what travels ------------------------------------------------------------------------------------
# JSON only: a pickle in a queue is code of whoever can write to the queue.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]

# --- where to ----------------------------------------------------------------------------------------
# A worker serves every task type unless its `--queues` say otherwise; what only tells, always.
task_queues = [_Queue(name) for name in (*map(_queue, _names()), _TOLD_QUEUE)]  # type: ignore[no-untyped-call]
task_default_queue = "llm.default"


def _route(_name: str, args: Any, kwargs: Any, _options: Any, **_: Any) -> dict[str, str] | None:
    """One queue per task type, so that one blocked type does not stand before the others."""
    task_type = (kwargs or {}).get("task_type") or (args[1] if args and len(args) > 1 else None)
    return {"queue": _queue(task_type)} if isinstance(task_type, str) else None


task_routes = (_route,)

# --- delivery ----------------------------------------------------------------------------------------
# Acknowledge after the run: a message of a killed worker comes back by itself, besides SQL's own way.
task_acks_late = True
task_reject_on_worker_lost = True
# One message per free slot: a prefetched one would wait behind a long call while another worker idles.
worker_prefetch_multiplier = 1
# Redelivery of an unacknowledged message. SQL's leases take over in seconds; this only has to be longer
# than most calls, because a redelivered message of a living job is read, ignored and forgotten.
_VISIBILITY_S = 600
broker_transport_options = {
    "visibility_timeout": _VISIBILITY_S,
    "unacked_restore_interval": 30,
    # A half-open connection is noticed in seconds instead of never (a blocking command has no end).
    "socket_timeout": 10,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 10,
    # Every slot may acknowledge at once.
    "max_connections": 200,
}
# A worker waits for its broker, however long it is away.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# Also one that answers and refuses (full, read-only, its disk full): Celery ends the worker otherwise.
broker_channel_error_retry = True
worker_consumer = "workers.consumer:Consumer"
# The running jobs of a lost connection are still ours: their rows say so.
worker_cancel_long_running_tasks_on_connection_loss = False
# A producer does not wait for a broker that is away: maintenance sends what SQL knows.
task_publish_retry = False
broker_pool_limit = 20
broker_pool_acquire_timeout = 5.0

# --- running -----------------------------------------------------------------------------------------
# Slots are threads; Redis and providers live on one loop. gevent lost messages, prefork multiplies SDKs.
worker_pool = "threads"
worker_concurrency = _current.worker.concurrency
# Our own log lines are structured; Celery may format its own.
worker_hijack_root_logger = False
worker_redirect_stdouts = False
# A waiting job is a row in SQL, never an ETA message in a worker's memory.
worker_eta_task_limit = 2 * _current.worker.concurrency

# --- being watched -----------------------------------------------------------------------------------
worker_send_task_events = True
task_send_sent_event = True
# Arguments are ids and options; the results are counts. Short enough for Flower's table.
resultrepr_maxsize = 512
