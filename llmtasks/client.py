"""The producer's side: add documents, submit, look, collect, retry, cancel. Loads no SDK, calls no model."""

from __future__ import annotations

import itertools
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llmtasks import incoming, logs, submission
from llmtasks.documents import FileError as FileError  # noqa: PLC0414  # what `find_documents` yields
from llmtasks.documents import Found, Text, find, pool, read_found, read_one
from llmtasks.errors import (
    InvalidDocument,
    JobError,
    LLMTasksError,
    NotNow,
    UnknownJob,
    UsageError,
    by_name,
)
from llmtasks.incoming import FileDocument as FileDocument  # noqa: PLC0414  # the other
from llmtasks.jobs import ENDED, JobState, NewJob
from llmtasks.messages import Usage
from llmtasks.settings import current
from llmtasks.store import batches, documents, jobs
from llmtasks.store import results as stored_results
from llmtasks.store.batches import BatchStatus
from llmtasks.store.documents import NewDocument
from llmtasks.store.process import database

_log = logs.get("client")

#: What a result is for programs, in this order: a line of `results --format jsonl`, and what a sink gets.
RESULT_KEYS = (
    "job_id",
    "document_id",
    "task_type",
    "state",
    "output",
    "error",
    "provider",
    "model",
    "usage",
    "cost_usd",
    "cached",
)


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

    def retry(self, *, failed_only: bool = False) -> int:
        """Queue its failed and cancelled jobs again, or the failed ones only; how many."""
        return retry(self.batch_id, failed_only=failed_only)


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
        source: The text itself, or a file: its path, or its bytes. A file may be text, HTML, PDF, Word or
            EPUB; see `find_documents`.
        document_id: Default: the path as given, else a digest of the text.
        tenant: Whose document it is.

    Adding the same text again changes nothing; another text under a known id replaces it for jobs that
    are submitted from then on.

    Raises:
        InvalidDocument: empty, not text, too large, or unreadable; the message says which.
        NotNow: a file that is no text could not be converted, and is not to blame: try again later.
    """
    path = str(source) if isinstance(source, Path) else None
    try:
        with pool(1) as converters:
            read = read_one(source, current().documents.max_bytes, converters)
    except (InvalidDocument, NotNow) as error:
        name = path or document_id or ("text" if isinstance(source, str) else "bytes")
        raise type(error)(f"{name}: {error}") from None
    document = incoming.document(read, document_id=document_id or path, tenant=tenant, path=path)
    documents.add(database(), [document])
    return document.document_id


def add_documents(found: Iterable[NewDocument]) -> list[str]:
    """Store many documents in one go: "added", "exists" or "updated" for each."""
    return list(documents.add(database(), list(found)))


def find_documents(
    paths: Sequence[str],
    document_id: str | None = None,
    tenant: str = "default",
    *,
    left_out: Counter[str] | None = None,
) -> Iterator[FileDocument | FileError]:
    r"""The documents in files, folders, globs and `-` (standard input), not stored yet.

    Each file is a document or a `FileError` that says why it is none, in a stable order and one at a time:
    a million files of one path need no memory; of several paths all ids are kept, to find two files of one
    id. PDF, Word, EPUB and HTML are converted to Markdown by processes of their own, on all cores; line ends
    of text files become `\n`.

    Args:
        paths: What to read. Folders are searched to the bottom for the suffixes of documents.
        document_id: The id, when exactly one file is found. Default: a file of a folder is named by its path
            inside that folder, any other by its path as given, standard input by a digest of its text.
        tenant: Whose documents these are.
        left_out: Counts files that folders hold besides, by suffix, or as "hidden", "linked folder".

    Raises:
        UsageError: a `document_id` for several files, before the first is read.
    """
    found = find(paths, left_out)
    if document_id is not None:
        first = list(itertools.islice(found, 2))
        if len(first) > 1:
            raise UsageError("--id names one document, and more than one file was found")
        found = (_renamed(one, document_id) for one in first)
    for one in read_found(found, current().documents.max_bytes):
        yield one if isinstance(one, FileError) else _checked(*one, tenant)


def submit_batch(
    ids: Iterable[str],
    task_type: str,
    *,
    batch_id: str | None = None,
    only_new: bool = False,
    **options: Any,
) -> Batch:
    """Submit one job per document id: rows only, the workers feed themselves from them.

    Args:
        ids: Document ids; each becomes one job, in this order.
        task_type: `summarize`, `extract`, `translate`, or one of your own.
        batch_id: Default: a new one. Jobs are added to a batch of yours that has this id.
        only_new: Refuse to add to one.
        options: The task type's, and `tenant`, `priority`, `fresh`, `stream` (answers can be watched while
            they are written), `deadline_s` (seconds from now, after which a job that is not done fails).

    Raises:
        UnknownTaskType, InvalidOption, UsageError: at once, and nothing is submitted.
        BatchExists: a batch of another tenant has this id, or, with `only_new`, any.
    """
    checked = submission.checked(task_type, options)
    batch_id = batch_id or uuid.uuid4().hex
    rows = (
        NewJob(
            job_id=str(uuid.uuid4()),
            document_id=_document_id(document_id),
            task_type=task_type,
            direct=False,
            batch_id=batch_id,
            **checked,
        )
        for document_id in ids
    )
    tenant, own = checked["tenant"], checked["options"]
    count = batches.create(database(), batch_id, tenant, task_type, own, rows, only_new=only_new)
    if not count:
        raise UsageError("a batch needs at least one document id")
    logs.info(_log, "batch-submitted", batch=batch_id, task=task_type, jobs=count)
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
        raise UnknownJob.named(target)
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
        yield job_result(row)
    if empty and batch_id is not None:  # a single job's id
        yield from map(job_result, stored_results.rows(db, job_id=batch_id))


def job(job_id: str) -> JobResult:
    """One job as it stands, ended or not.

    Raises:
        UnknownJob: no job has this id.
    """
    for row in stored_results.rows(database(), job_id=job_id):
        return job_result(row)
    raise UnknownJob(f"no job has the id {job_id!r}")


def get_result(job_id: str) -> JobResult:
    """One job's output.

    Raises:
        UnknownJob: No job has this id.
        JobError: The job has not ended yet.
        LLMTasksError: The typed error it failed with.
    """
    for row in stored_results.rows(database(), job_id=job_id):
        found = job_result(row)
        if found.state == JobState.COMPLETED:
            return found
        if found.error is not None:
            raise found.error
        if found.state in ENDED:
            raise by_name("JobCancelled")(f"job {job_id} was cancelled")
        raise JobError(f"job {job_id} is {found.state}; its result is not there yet")
    raise UnknownJob(f"no job has the id {job_id!r}")


def retry(target: str, *, failed_only: bool = False) -> int:
    """Queue the failed and cancelled jobs of a batch (or one job) again; returns how many.

    With `failed_only` what was cancelled stays cancelled. A deadline counts anew.
    """
    return jobs.retry(database(), target, failed_only=failed_only)


def cancel(target: str, *, running: bool = True) -> int:
    """Cancel what has not ended of a batch, or one job; returns how many jobs that were.

    Queued jobs stop at once, running ones at their next step; without `running` those go on, because
    their model calls are paid for. Callers in `.get()` are told by a worker.
    """
    return jobs.cancel(database(), target, running=running)


def job_result(row: stored_results.ResultRow) -> JobResult:
    """A stored row as its reader sees it."""
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


def _renamed(found: Found | FileError, document_id: str) -> Found | FileError:
    return replace(found, document_id=document_id)


def _checked(found: Found, read: Text, tenant: str) -> FileDocument | FileError:
    key = found.document_id
    try:
        return incoming.document(read, document_id=key, tenant=tenant, path=found.path)
    except InvalidDocument as error:
        return FileError(found.path, key, f"{found.path}: {error}")


def _document_id(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"a document id is a text, not {type(value).__name__}")
    if not value:
        raise UsageError("a document id must not be empty")
    return value
