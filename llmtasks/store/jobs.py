"""Jobs: their rows and every move between states.

Each move is one conditional update, so that of two who try one wins; the loser learns it from the
answer. Moves of the holder may be repeated: when the answer to a commit was lost, the second try
says that it was done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, bindparam
from sqlalchemy.engine import Connection, Row

from llmtasks.errors import InvalidOption, JobCancelled, UnknownJob
from llmtasks.jobs import MAX_PRIORITY, Job, JobState, NewJob
from llmtasks.store import dialect, outbox
from llmtasks.store.engine import Database, epoch
from llmtasks.store.names import (
    MAX_DOCUMENT_ID,
    MAX_ID,
    MAX_NAME,
    MAX_TENANT,
    clean,
    is_key,
    is_storable,
)
from llmtasks.store.results import NewResult, columns_of
from llmtasks.store.tables import (
    ENDED,
    OPEN,
    QUEUED,
    RUNNING,
    UNCLAIMED,
    WAITING,
    batches,
    documents,
    in_state,
    jobs,
    results,
)

#: Rows that a move of a whole batch locks at once: workers get their turn between two chunks. Also
#: the rows of one insert.
CHUNK = 5_000
#: More than any job can have.
_NO_CRASHES_LIMIT = 2_000_000_001
#: `sent_at` of a row that was written for a message which was there before it. Nobody knows when that
#: was sent: nothing may count as overtaken by it.
LONG_AGO = 0.0
#: Seconds after which a cancelled row is no news to its worker any more.
CANCEL_NEWS_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedJob(Job):
    """A job in the hands of its claimer. `document_hash` is the text it was submitted with.

    `document_hash` is None when there was no such document at submission. `left_s` is how many seconds it
    had until its deadline when it was claimed, `queued_s` how many had passed since its submission.
    """

    document_hash: str | None = None
    queued_s: float = 0.0
    left_s: float | None = None

    @property
    def resumed(self) -> bool:
        """Whether it was claimed before: there may be answers that are paid already."""
        return self.fence > 1


_JOB_COLUMNS = [jobs.c[field.name] for field in fields(Job)]
_CLAIMED_COLUMNS = [
    *_JOB_COLUMNS,
    jobs.c.document_hash,
    (epoch() - jobs.c.created_at).label("queued_s"),
    (jobs.c.deadline_at - epoch()).label("left_s"),
]


def insert(db: Database, new: Sequence[NewJob], *, sent: bool) -> list[bool]:
    """Write rows for jobs; True where the row is new, False where the id has one (which is kept).

    With `sent` the caller publishes them itself right afterwards. A `batch_id` without a batch
    makes one: a Celery group.

    Raises:
        InvalidOption: an id, a name or a priority that cannot be.
    """
    for job in new:
        check(job)
    if not new:
        return []
    with db.write() as connection:
        _group(connection, new)
        created = set(
            connection.execute(
                _insert(connection, sent_at=_sent_at(sent=sent)).returning(jobs.c.job_id),
                [_row(job) for job in new],
            ).scalars()
        )
    answers = []
    for job in new:
        answers.append(job.job_id in created)
        created.discard(job.job_id)
    return answers


def insert_received(db: Database, job: NewJob) -> None:
    """Write the row of a job whose message was there before it, unless its id has one.

    Raises:
        InvalidOption: an id, a name or a priority that cannot be.
    """
    check(job)
    with db.write() as connection:
        _group(connection, [job])
        connection.execute(_insert(connection, sent_at=LONG_AGO), _row(job))


def insert_failed(
    db: Database,
    job: NewJob,
    worker_id: str,
    error_type: str,
    message: str,
    *,
    to_sink: bool = False,
) -> None:
    """Write the row of a job that has failed already, unless its id has one; `to_sink` as for `complete`.

    Its message is in the hands of this worker, which tells its caller.

    Raises:
        InvalidOption: an id or a name that cannot be: it has no row.
    """
    check(job)
    with db.write() as connection:
        _group(connection, [job])
        row = _insert(connection, sent_at=LONG_AGO).values(
            {"worker_id": worker_id, "claimed_at": epoch(), **_failed(error_type, message)}
        )
        created = connection.execute(row.returning(jobs.c.job_id), _row(job)).first()
        if created is not None and to_sink:
            outbox.put(connection, [job.job_id])


def check(job: NewJob) -> None:
    """Refuse what no row can hold.

    Raises:
        InvalidOption: names the field.
    """
    keys: list[tuple[str, str | None, int]] = [
        ("job_id", job.job_id, MAX_ID),
        ("batch_id", job.batch_id, MAX_ID),
        ("tenant", job.tenant, MAX_TENANT),
        ("task_type", job.task_type, MAX_NAME),
        ("document_id", job.document_id, MAX_DOCUMENT_ID),
    ]
    for name, value, longest in keys:
        if value is not None and not is_key(value, longest):
            raise InvalidOption(
                f"{name} {ascii(value)[:80]}: must have 1 to {longest} characters,"
                " without NUL and lone surrogates"
            )
    if not 0 <= job.priority <= MAX_PRIORITY:
        raise InvalidOption(f"priority {job.priority}: must be 0 to {MAX_PRIORITY}")


def add_rows(connection: Connection, new: Sequence[NewJob], *, sent: bool) -> None:
    """Insert checked jobs in their order; an id that has a row keeps it."""
    statement = _insert(connection, sent_at=_sent_at(sent=sent))
    for start in range(0, len(new), CHUNK):
        connection.execute(statement, [_row(job) for job in new[start : start + CHUNK]])


def ended_of(db: Database, job_ids: Sequence[str]) -> set[str]:
    """Those of these jobs that have ended, or are gone. At most some hundreds at once."""
    if not job_ids:
        return set()
    with db.read() as connection:
        still = connection.execute(
            sa.select(jobs.c.job_id).where(jobs.c.job_id.in_(job_ids), OPEN)
        ).scalars()
        return set(job_ids) - set(still)


def get(db: Database, job_id: str) -> Job | None:
    """The job as its row says; None when there is none."""
    if not is_storable(job_id):
        return None
    with db.read() as connection:
        row = connection.execute(
            sa.select(*_JOB_COLUMNS).where(jobs.c.job_id == job_id)
        ).one_or_none()
    return None if row is None else Job(**_values(row))


#: Its deadline, if it has one, has not passed: it may be begun.
IN_TIME = sa.or_(jobs.c.deadline_at.is_(None), jobs.c.deadline_at > epoch())

_CLAIM = (
    sa.update(jobs)
    .where(
        jobs.c.job_id == bindparam("the_job"),
        jobs.c.crashes < bindparam("the_crashes"),
        sa.or_(QUEUED, sa.and_(WAITING, jobs.c.not_before <= epoch())),
        IN_TIME,
    )
    .values(
        state=JobState.RUNNING.value,
        fence=jobs.c.fence + 1,
        attempts=jobs.c.attempts + 1,
        worker_id=bindparam("the_worker"),
        claimed_at=epoch(),
        not_before=None,
        reason=None,
    )
    .returning(*_CLAIMED_COLUMNS)
)


def claim(
    db: Database, job_id: str, worker_id: str, *, crashes_below: int = _NO_CRASHES_LIMIT
) -> ClaimedJob | None:
    """Take the job: queued, or waiting and due, and with fewer `crashes` than that.

    None when somebody else has it, it has ended, or its deadline has passed.
    """
    if not is_storable(job_id):
        return None
    values = {"the_job": job_id, "the_worker": worker_id, "the_crashes": crashes_below}
    row = db.together(lambda connection: connection.execute(_CLAIM, values).one_or_none())
    return None if row is None else ClaimedJob(**_values(row))


def postpone(db: Database, job_id: str, delay: float, reason: str) -> None:
    """Let a job that nobody has claimed wait `delay` seconds."""
    with db.write() as connection:
        connection.execute(
            sa.update(jobs)
            .where(jobs.c.job_id == job_id, QUEUED)
            .values(state=JobState.WAITING.value, not_before=epoch() + delay, reason=clean(reason))
        )


def complete(db: Database, job: ClaimedJob, result: NewResult, *, to_sink: bool = False) -> bool:
    """Store the result and end the job, both or neither. False: the fence was lost.

    With `to_sink` it is to be delivered to the user's sink, from the same moment on.
    """
    row = {
        "job_id": job.job_id,
        "batch_id": job.batch_id,
        "tenant": job.tenant,
        **columns_of(result),
    }

    def write(connection: Connection) -> bool:
        if not _move(connection, job, _COMPLETE):
            return _is_already(connection, job, JobState.COMPLETED)
        connection.execute(_RESULT, row)
        if to_sink:
            outbox.put(connection, [job.job_id])
        return True

    return db.together(write)


def fail(
    db: Database, job: ClaimedJob, error_type: str, message: str, *, to_sink: bool = False
) -> bool:
    """End the job with a typed error; `to_sink` as for `complete`. False: the fence was lost."""
    failed = _change(_failed(error_type, message))

    def write(connection: Connection) -> bool:
        if not _move(connection, job, failed):
            return _is_already(connection, job, JobState.FAILED)
        if to_sink:
            outbox.put(connection, [job.job_id])
        return True

    return db.together(write)


def park(
    db: Database, job: ClaimedJob, delay: float, reason: str, *, attempts: int, deferred: bool
) -> bool:
    """Let the job wait `delay` seconds. False: the fence was lost.

    `attempts` is what it has used up so far; `deferred` says that this wait is one that costs none.
    """
    values = {
        "state": JobState.WAITING.value,
        "not_before": epoch() + max(0.0, delay),
        "reason": clean(reason),
        "attempts": attempts,
        "deferrals": jobs.c.deferrals + int(deferred),
        "worker_id": None,
    }
    return _give_back(db, job, values, JobState.WAITING)


def release(db: Database, job: ClaimedJob, *, attempts: int) -> bool:
    """Give the job back to the queue, for the feeder to send. False: the fence was lost."""
    values = {
        "state": JobState.QUEUED.value,
        "sent_at": None,
        "attempts": attempts,
        "worker_id": None,
    }
    return _give_back(db, job, values, JobState.QUEUED)


def unsend(db: Database, job_ids: Sequence[str]) -> None:
    """No message of these is under way after all: where queued or ended, the feeder sends one."""
    sent = sa.or_(QUEUED, ENDED)
    for start in range(0, len(job_ids), CHUNK):
        some = [job_id for job_id in job_ids[start : start + CHUNK] if is_storable(job_id)]
        rows = sa.select(jobs.c.seq).where(jobs.c.job_id.in_(some), sent).order_by(jobs.c.seq)
        with db.write() as connection:
            connection.execute(
                sa.update(jobs).where(dialect.locked(rows, skip=False), sent).values(sent_at=None)
            )


def cancel(db: Database, target: str, *, running: bool = True) -> int:
    """End what has not ended of a job or a batch; how many jobs. The feeder tells waiting callers.

    Without `running` those go on: they are paid for already. A batch is worked through in chunks: when
    the database goes away half-way, cancel it again.

    Raises:
        UnknownJob: no job and no batch has this id.
    """
    with db.write() as connection:
        rows = _rows_of(connection, target)
        connection.execute(
            sa.update(batches).where(batches.c.batch_id == target).values(cancelled_at=epoch())
        )
    return sum(_sweep(db, rows, OPEN if running else UNCLAIMED, _cancelled()))


def end_cancelled(connection: Connection, job_ids: Sequence[str]) -> None:
    """End those of the jobs, given back or taken from the dead, whose batch was cancelled meanwhile."""
    if not job_ids:
        return
    wanted = sa.exists().where(
        batches.c.batch_id == jobs.c.batch_id, batches.c.cancelled_at.is_not(None)
    )
    connection.execute(
        sa.update(jobs)
        .where(jobs.c.job_id.in_(job_ids), UNCLAIMED, jobs.c.batch_id.is_not(None), wanted)
        .values(_cancelled())
    )


def _cancelled() -> dict[str, Any]:
    """The columns of a job that is cancelled."""
    return {
        "state": JobState.CANCELLED.value,
        "finished_at": epoch(),
        "not_before": None,
        "reason": None,
        "error_type": JobCancelled.__name__,
        "error_message": "the job was cancelled",
        "sent_at": to_be_told(),
    }


def _failed(error_type: str, message: str) -> dict[str, Any]:
    """The columns of a job that failed."""
    return {
        "state": JobState.FAILED.value,
        "finished_at": epoch(),
        "error_type": clean(error_type, MAX_NAME),
        "error_message": clean(message),
    }


def to_be_told() -> ColumnElement[Any]:
    """`sent_at` of a job that is ended from outside: a direct one's caller is to be told, for the others
    nobody waits.
    """
    return sa.case((jobs.c.direct, None), else_=sa.func.coalesce(jobs.c.sent_at, epoch()))


def retry(db: Database, target: str, *, failed_only: bool = False) -> int:
    """Queue again what failed or was cancelled of a job or a batch; how many. The feeder sends it.

    With `failed_only` what was cancelled stays so. A deadline counts anew from now.

    Raises:
        UnknownJob: no job and no batch has this id.
    """
    values = {
        "state": JobState.QUEUED.value,
        "sent_at": None,
        "attempts": 0,
        "crashes": 0,
        "worker_id": None,
        "claimed_at": None,
        "finished_at": None,
        "error_type": None,
        "error_message": None,
        "deadline_at": epoch() + jobs.c.deadline_s,
    }
    again = [JobState.FAILED] if failed_only else [JobState.FAILED, JobState.CANCELLED]
    with db.write() as connection:
        _rows_of(connection, target)
        connection.execute(
            sa.update(batches)
            .where(batches.c.batch_id.in_([target, _batch_of(target)]))
            .values(cancelled_at=None)
        )
        rows = _rows_of(
            connection, target
        )  # now that its batch is held: it may just have been removed
        started = connection.execute(sa.select(epoch())).scalar_one()
        ended = sa.and_(
            in_state(*again),
            # A job that fails again while we are at it is not retried a second time.
            jobs.c.finished_at <= started,
        )
        # While the batch is held: whoever removes it then sees that it has open jobs.
        first = _sweep_chunk(connection, rows, ended, values)
    return len(first) + sum(_sweep(db, rows, ended, values, first))


def running(db: Database, worker_id: str) -> set[str]:
    """The jobs that this worker holds, as far as the database knows.

    A claim whose answer was lost on the way is here, and nowhere in the worker: it has to be
    released.
    """
    with db.read() as connection:
        found = sa.select(jobs.c.job_id).where(jobs.c.worker_id == worker_id, RUNNING)
        return set(connection.scalars(found))


def held(db: Database, worker_id: str, job_id: str) -> ClaimedJob | None:
    """A job as this worker's claim has it; None when it does not hold it any more."""
    mine = sa.and_(jobs.c.job_id == job_id, jobs.c.worker_id == worker_id, RUNNING)
    with db.read() as connection:
        row = connection.execute(sa.select(*_CLAIMED_COLUMNS).where(mine)).one_or_none()
    return None if row is None else ClaimedJob(**_values(row))


def running_cancelled(db: Database, worker_id: str) -> list[str]:
    """Jobs that were cancelled lately while this worker ran them."""
    with db.read() as connection:
        return list(
            connection.execute(
                sa.select(jobs.c.job_id).where(
                    jobs.c.worker_id == worker_id,
                    jobs.c.finished_at >= epoch() - CANCEL_NEWS_S,
                    in_state(JobState.CANCELLED),
                )
            ).scalars()
        )


def _sent_at(*, sent: bool) -> ColumnElement[Any]:
    return epoch() if sent else sa.null()


def _insert(connection: Connection, *, sent_at: ColumnElement[Any] | float) -> dialect.Insert:
    """One statement for a row: it pins the text that its document has now."""
    pinned = (
        sa.select(documents.c.content_hash)
        .where(
            documents.c.tenant == bindparam("of_tenant"),
            documents.c.document_id == bindparam("of_document"),
        )
        .scalar_subquery()
    )
    return (
        dialect.insert(connection, jobs)
        .values(
            document_hash=pinned,
            created_at=epoch(),
            sent_at=sent_at,
            deadline_at=epoch() + bindparam("of_deadline", type_=sa.Double()),
            state=JobState.QUEUED.value,
            fence=0,
            attempts=0,
            deferrals=0,
            crashes=0,
        )
        .on_conflict_do_nothing(index_elements=[jobs.c.job_id])
    )


def _row(job: NewJob) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "batch_id": job.batch_id,
        "tenant": job.tenant,
        "task_type": job.task_type,
        "document_id": job.document_id,
        "options": dict(job.options),
        "priority": job.priority,
        "fresh": job.fresh,
        "stream": job.stream,
        "direct": job.direct,
        "canvas": None if job.canvas is None else dict(job.canvas),
        "of_tenant": job.tenant,
        "of_document": job.document_id,
        "deadline_s": job.deadline_s,
        "of_deadline": job.deadline_s,
    }


def _values(row: Row[Any]) -> dict[str, Any]:
    values = row._asdict()
    values["state"] = JobState(values["state"])
    return values


def _group(connection: Connection, new: Sequence[NewJob]) -> None:
    """The batches of direct jobs, in the order of their ids; NULL is the type of a mixed one."""
    tenants: dict[str, str] = {}
    types: dict[str, set[str]] = {}
    for job in new:
        if job.batch_id is not None:
            tenants.setdefault(job.batch_id, job.tenant)
            types.setdefault(job.batch_id, set()).add(job.task_type)
    if not types:
        return
    statement = dialect.insert(connection, batches).values(created_at=epoch())
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[batches.c.batch_id],
            set_={"task_type": None},
            where=batches.c.task_type.is_distinct_from(statement.excluded.task_type),
        ),
        [
            {
                "batch_id": batch_id,
                "tenant": tenants[batch_id],
                "task_type": next(iter(names)) if len(names) == 1 else None,
                "options": {},
            }
            for batch_id, names in sorted(types.items())
        ],
    )


_MOVE_CONDITION = sa.and_(
    jobs.c.job_id == bindparam("the_job"), RUNNING, jobs.c.fence == bindparam("the_fence")
)


def _change(values: Mapping[str, Any]) -> sa.Update:
    """A change of a job that its holder still holds."""
    return sa.update(jobs).where(_MOVE_CONDITION).values(**values)


#: Made once: what every job needs is not put together for each.
_COMPLETE = _change({"state": JobState.COMPLETED.value, "finished_at": epoch()})
_RESULT = sa.insert(results).values(created_at=epoch())


def _move(connection: Connection, job: ClaimedJob, change: sa.Update) -> bool:
    """Move the job if its holder still holds it."""
    moved = connection.execute(change, {"the_job": job.job_id, "the_fence": job.fence})
    return moved.rowcount == 1


def _give_back(db: Database, job: ClaimedJob, values: Mapping[str, Any], state: JobState) -> bool:
    """Let go of a job. One of a batch that was cancelled while it ran ends with that."""
    change = _change(values)

    def write(connection: Connection) -> bool:
        if not _move(connection, job, change):
            return _is_already(connection, job, state)
        if job.batch_id is not None and _is_cancelled(connection, job.batch_id):
            end_cancelled(connection, [job.job_id])
        return True

    return db.together(write)


_CANCELLED_AT = sa.select(batches.c.cancelled_at).where(
    batches.c.batch_id == bindparam("the_batch")
)


def _is_cancelled(connection: Connection, batch_id: str) -> bool:
    """Whether the batch was cancelled. Asked first: it mostly was not, and asking is cheap."""
    return connection.execute(_CANCELLED_AT, {"the_batch": batch_id}).scalar() is not None


def _is_already(connection: Connection, job: ClaimedJob, state: JobState) -> bool:
    """Whether this very claim made this move before: its commit arrived, the answer did not."""
    found = connection.execute(
        sa.select(jobs.c.seq).where(
            jobs.c.job_id == job.job_id, jobs.c.fence == job.fence, in_state(state)
        )
    )
    return found.first() is not None


def _batch_of(job_id: str) -> sa.ScalarSelect[Any]:
    """The batch that a job belongs to."""
    return sa.select(jobs.c.batch_id).where(jobs.c.job_id == job_id).scalar_subquery()


def _rows_of(connection: Connection, target: str) -> ColumnElement[bool]:
    """The condition for the jobs of a batch, or for one job."""
    if is_storable(target):
        for key, rows in (
            (batches.c.batch_id, jobs.c.batch_id == target),
            (jobs.c.job_id, jobs.c.job_id == target),
        ):
            if connection.execute(sa.select(key).where(key == target)).first() is not None:
                return rows
    raise UnknownJob(f"no job and no batch has the id {target!r}")


def _sweep(
    db: Database,
    which: ColumnElement[bool],
    state: ColumnElement[bool],
    values: Mapping[str, Any],
    moved: Sequence[int] | None = None,
) -> Iterator[int]:
    """Move all rows of a target that are in a state, in arrival order, a chunk per transaction.

    Goes on after `moved`, a chunk that was moved already.
    """
    while moved is None or len(moved) == CHUNK:
        after = max(moved) if moved else 0
        if moved is not None:
            db.give_way()
        with db.write() as connection:
            moved = _sweep_chunk(connection, which, state, values, after)
        yield len(moved)


def _sweep_chunk(
    connection: Connection,
    which: ColumnElement[bool],
    state: ColumnElement[bool],
    values: Mapping[str, Any],
    after: int = 0,
) -> Sequence[int]:
    """Move the first rows after that one; which they were."""
    rows = (
        sa.select(jobs.c.seq)
        .where(which, state, jobs.c.seq > after)
        .order_by(jobs.c.seq)
        .limit(CHUNK)
    )
    moved = (
        sa.update(jobs)
        .where(dialect.locked(rows, skip=False), state)
        .values(**values)
        .returning(jobs.c.seq)
    )
    return connection.execute(moved).scalars().all()
