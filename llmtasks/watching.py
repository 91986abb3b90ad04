"""What only those ask who watch: when, until when, served by whom, answered how often."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from llmtasks import task_types
from llmtasks.errors import UnknownJob
from llmtasks.store import batches, calls, documents, jobs, workers
from llmtasks.store.batches import Times
from llmtasks.store.calls import Recent
from llmtasks.store.documents import Document
from llmtasks.store.process import database
from llmtasks.store.workers import WorkerRow

#: How far back answers are counted: seconds, and calls.
_RECENT_S = 3_600.0
_RECENT_CALLS = 20_000
#: Jobs that one statement asks for.
_AT_ONCE = 500


def times(target: str) -> Times:
    """When a batch, a Celery group or a job was submitted, and when the last of it ended.

    Raises:
        UnknownJob: Nothing has this id.
    """
    found = batches.times(database(), target)
    if found is None:
        raise UnknownJob.named(target)
    return found


def tenant_of(target: str) -> str | None:
    """Whose a batch is, or a job; None when there is neither."""
    return batches.tenant_of(database(), target)


def tenant_of_job(job_id: str) -> str | None:
    """Whose a job is; None when there is none."""
    found = jobs.get(database(), job_id)
    return None if found is None else found.tenant


def ended_of(job_ids: Sequence[str]) -> set[str]:
    """Those of these jobs that have ended, or are gone."""
    chunks = [job_ids[start : start + _AT_ONCE] for start in range(0, len(job_ids), _AT_ONCE)]
    return set().union(*(jobs.ended_of(database(), chunk) for chunk in chunks))


def answers() -> None:
    """Look whether the database does.

    Raises:
        StoreUnavailable: it does not.
    """
    batches.newest(database())


def document(document_id: str, tenant: str) -> Document:
    """A stored document with its newest text.

    Raises:
        DocumentNotFound: there is none of this id.
    """
    return documents.load(database(), tenant, document_id)


def document_ids(tenant: str, after: str, limit: int) -> list[str]:
    """Ids of a tenant's documents behind this one, in the order of the ids."""
    return documents.ids_after(database(), tenant, after, limit)


def newest_batch() -> str:
    """The id of the batch or Celery group that was submitted last.

    Raises:
        UnknownJob: There is none.
    """
    found = batches.newest(database())
    if found is None:
        raise UnknownJob("there is no batch yet; submit one with: llmtasks submit")
    return found


def next_try_s(target: str) -> float | None:
    """Seconds until the first waiting job of a batch is tried again; None when none waits."""
    return batches.next_due_s(database(), target)


def unserved(target: str) -> list[str]:
    """The queues with open jobs of a batch (or of a job) that no live worker serves."""
    served = {queue for worker in workers.live(database()) for queue in worker.queues}
    known = task_types.names()
    names = batches.open_task_types(database(), target)
    wanted = {task_types.queue(name) for name in names if name in known}
    return sorted(wanted - served)


def recent_answers() -> Recent:
    """What each provider answered in the last hour, or in less where that is very much."""
    return calls.recent(database(), _RECENT_S, _RECENT_CALLS)


def metrics_targets() -> list[dict[str, Any]]:
    """Where a Prometheus of this host finds the metrics of every live worker process, in its own form for
    service discovery by HTTP or by file.
    """
    return targets(workers.live(database()), socket.gethostname())


def targets(live: Iterable[WorkerRow], here: str) -> list[dict[str, Any]]:
    """The targets of these workers as seen from the host called `here`, a group for each host."""
    found: dict[str, list[str]] = {}
    for worker in live:
        if (target := _target(worker, here)) is not None:
            found.setdefault(worker.hostname, []).append(target)
    return [{"targets": sorted(found[host]), "labels": {"host": host}} for host in sorted(found)]


def _target(worker: WorkerRow, here: str) -> str | None:
    """`host:port`. None: it serves no metrics, or on the loopback of another host.

    Who listens on every address is reached by the name of its host.
    """
    if worker.metrics_url is None:
        return None
    url = urlsplit(worker.metrics_url)
    try:
        address = ipaddress.ip_address(url.hostname or "")
    except ValueError:  # a name
        return url.netloc if url.hostname != "localhost" or worker.hostname == here else None
    if address.is_loopback:
        return url.netloc if worker.hostname == here else None
    return f"{worker.hostname}:{url.port}" if address.is_unspecified else url.netloc
