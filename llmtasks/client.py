"""The producer's side: add documents, submit, look, collect, retry, cancel. Loads no SDK, calls no model."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmtasks import task_types
from llmtasks.errors import (
    InvalidDocument,
    JobError,
    LLMTasksError,
    UnknownJob,
    UsageError,
    by_name,
)
from llmtasks.jobs import ENDED, JobState, NewJob
from llmtasks.messages import Usage
from llmtasks.settings import current
from llmtasks.store import batches, documents, jobs
from llmtasks.store import results as stored_results
from llmtasks.store.batches import BatchStatus
from llmtasks.store.documents import NewDocument
from llmtasks.tasks import COMMON_OPTIONS, check_common, database


@dataclass(frozen=True, slots=True)
class Batch:
    """A submitted batch: its id, and how many jobs it has."""

    batch_id: str
    jobs: int

    @property
    def id(self) -> str:
        """The batch's id, by the name that Celery's results give theirs."""
        return self.batch_id

    def status(self) -> BatchStatus:
        """Where it stands now."""
        return status(self.batch_id)

    def results(self) -> Iterator[JobResult]:
        """Its jobs and their outputs so far, in the order of submission."""
        return results(batch_id=self.batch_id)

    def cancel(self) -> int:
        """Cancel what has not ended; how many jobs that were."""
        return cancel(self.batch_id)

    def retry(self) -> int:
        """Queue its failed and cancelled jobs again; how many."""
        return retry(self.batch_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """A job and, once it is completed, its output: a text, or `{"entities": [...]}`.

    `seconds` is the model's latency, 0.0 for an answer that was already there.
    """

    job_id: str
    document_id: str
    task_type: str
    state: str
    output: Any
    error_type: str | None
    error_message: str | None
    provider: str | None
    model: str | None
    usage: Usage
    cost_usd: float | None
    cached: bool
    seconds: float

    def __getitem__(self, name: str) -> Any:
        """Read it like the line of JSON that `llmtasks results` prints: `row["output"]`."""
        if name == "error":
            return self.error_type and {"type": self.error_type, "message": self.error_message}
        if name == "usage":
            return {
                "input_tokens": self.usage.input_tokens,
                "output_tokens": self.usage.output_tokens,
            }
        if name not in self.__slots__:
            raise KeyError(name)
        return getattr(self, name)

    @property
    def error(self) -> LLMTasksError | None:
        """The typed error of a failed job."""
        if self.error_type is None:
            return None
        return by_name(self.error_type)(self.error_message or "")


def add_document(
    source: str | bytes | Path,
    document_id: str | None = None,
    tenant: str = "default",
) -> str:
    """Store a document; returns its id.

    Args:
        source: The text itself, its UTF-8 bytes, or a path to a file with it.
        document_id: Default: the path as given, else a digest of the text.
        tenant: Whose document it is.

    Adding the same text again changes nothing; another text under a known id replaces it for jobs that
    are submitted from then on.

    Raises:
        InvalidDocument: empty, not text, too large, or unreadable; the message says which.
    """
    text, origin = _read(source, document_id)
    name = document_id or origin or f"doc-{_digest(text)[:16]}"
    documents.add(
        database(),
        [
            NewDocument(
                document_id=name,
                text=text,
                content_hash=_digest(text),
                tenant=tenant,
                path=origin,
            )
        ],
    )
    return name


def add_documents(found: Iterable[NewDocument]) -> list[str]:
    """Store many documents in one go: "added", "exists" or "updated" for each."""
    return list(documents.add(database(), list(found)))


def read_document(path: Path, document_id: str, tenant: str = "default") -> NewDocument:
    """A file as a document, not stored yet.

    Raises:
        InvalidDocument: naming the file and what is wrong with it.
    """
    text, origin = _read(path, document_id)
    document = NewDocument(
        document_id=document_id,
        text=text,
        content_hash=_digest(text),
        tenant=tenant,
        path=origin,
    )
    try:
        documents.check(document)
    except InvalidDocument as error:
        raise InvalidDocument(f"{path}: {error}") from None
    return document


def submit_batch(
    ids: Iterable[str], task_type: str, *, batch_id: str | None = None, **options: Any
) -> Batch:
    """Submit one job per document id: rows only, the workers feed themselves from them.

    Args:
        ids: Document ids; each becomes one job, in this order.
        task_type: `summarize`, `extract`, `translate`, or one of your own.
        batch_id: Default: a new one.
        options: The task type's, and `tenant`, `priority`, `fresh`.

    Raises:
        UnknownTaskType, InvalidOption, UsageError: at once, and nothing is submitted.
    """
    own = dict(options)
    common = {name: own.pop(name, default) for name, default in COMMON_OPTIONS.items()}
    check_common(common)
    checked = task_types.validate_options(task_type, own)
    batch_id = batch_id or uuid.uuid4().hex
    rows = (
        NewJob(
            job_id=str(uuid.uuid4()),
            document_id=_document_id(document_id),
            task_type=task_type,
            options=checked,
            direct=False,
            batch_id=batch_id,
            **common,
        )
        for document_id in ids
    )
    count = batches.create(database(), batch_id, common["tenant"], task_type, checked, rows)
    if not count:
        raise UsageError("a batch needs at least one document id")
    return Batch(batch_id, count)


def document_ids(tenant: str = "default") -> Iterator[str]:
    """The ids of all stored documents of a tenant."""
    return documents.all_ids(database(), tenant)


def status(target: str) -> BatchStatus:
    """Where a batch, a Celery group or a single job stands.

    Raises:
        UnknownJob: Nothing has this id.
    """
    found = batches.status(database(), target)
    if found is None:
        raise UnknownJob(f"no batch and no job has the id {target!r}")
    return found


def results(
    batch_id: str | None = None, document_id: str | None = None, tenant: str = "default"
) -> Iterator[JobResult]:
    """The jobs of a batch (or a single job's id), or of a document, with what became of them.

    In the order of submission, streamed: a million rows need no memory.

    Raises:
        UnknownJob: Nothing has this batch id.
    """
    if (batch_id is None) == (document_id is None):
        raise UsageError("results needs a batch_id or a document_id, and not both")
    if batch_id is not None:
        status(batch_id)
    return _results(batch_id, document_id, tenant)


def _results(batch_id: str | None, document_id: str | None, tenant: str) -> Iterator[JobResult]:
    db, empty = database(), True
    for row in stored_results.rows(db, batch_id=batch_id, document_id=document_id, tenant=tenant):
        empty = False
        yield _job_result(row)
    if empty and batch_id is not None:  # a single job's id
        yield from map(_job_result, stored_results.rows(db, job_id=batch_id))


def get_result(job_id: str) -> JobResult:
    """One job's output.

    Raises:
        UnknownJob: No job has this id.
        JobError: The job has not ended yet.
        LLMTasksError: The typed error it failed with.
    """
    for row in stored_results.rows(database(), job_id=job_id):
        found = _job_result(row)
        if found.state == JobState.COMPLETED:
            return found
        if found.error is not None:
            raise found.error
        if found.state in ENDED:
            raise by_name("JobCancelled")(f"job {job_id} was cancelled")
        raise JobError(f"job {job_id} is {found.state}; its result is not there yet")
    raise UnknownJob(f"no job has the id {job_id!r}")


def retry(target: str) -> int:
    """Queue the failed and cancelled jobs of a batch (or one job) again; returns how many."""
    return jobs.retry(database(), target)


def cancel(target: str) -> int:
    """Cancel what has not ended of a batch, or one job; returns how many jobs that were.

    Queued jobs stop at once, running ones at their next step. Callers in `.get()` are told by a worker.
    """
    return jobs.cancel(database(), target)


def _job_result(row: Any) -> JobResult:
    return JobResult(
        job_id=row.job_id,
        document_id=row.document_id,
        task_type=row.task_type,
        state=row.state,
        output=row.output,
        error_type=row.error_type,
        error_message=row.error_message,
        provider=row.provider,
        model=row.model,
        usage=row.usage,
        cost_usd=row.cost_usd,
        cached=row.cached,
        seconds=row.seconds,
    )


def _read(source: str | bytes | Path, document_id: str | None) -> tuple[str, str | None]:
    """The text, and where it came from when that was a file."""
    limit = current().documents.max_bytes
    if isinstance(source, str):
        if len(source) > limit:
            raise InvalidDocument(f"{document_id or 'text'}: is larger than {limit} bytes")
        return source, None
    origin = str(source) if isinstance(source, Path) else None
    name = origin or document_id or "bytes"
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise InvalidDocument(f"{name}: cannot be read: {error.strerror}") from None
    else:
        data = source
    if len(data) > limit:
        raise InvalidDocument(
            f"{name}: is larger than {limit} bytes (documents.max_bytes in the settings)"
        )
    try:
        return data.decode("utf-8-sig"), origin
    except UnicodeDecodeError as error:
        raise InvalidDocument(
            f"{name}: is not UTF-8 text (byte {error.start}); convert it first"
        ) from None


def _digest(text: str) -> str:
    try:
        return hashlib.sha256(text.encode()).hexdigest()
    except UnicodeEncodeError:
        raise InvalidDocument("the text holds lone surrogates, which no encoding allows") from None


def _document_id(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"a document id is a text, not {type(value).__name__}")
    if not value:
        raise UsageError("a document id must not be empty")
    return value
