"""What is removed by its age, and what never is: anything open, undelivered, or still needed by a job.

Each kind is a generator that removes a little per transaction and then yields how much: its caller decides
when the next one comes, because SQLite has one writer. Whatever was removed stays removed when it stops
half-way, and nothing has to be remembered to go on another time, by another process.

A batch is gone for everybody in one moment, with its row; its jobs follow in small transactions, so that
nobody ever sees a part of its counts. `removals` knows whose are still to go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Select
from sqlalchemy.engine import Connection

from llmtasks.settings import Retention
from llmtasks.store import calls, dialect
from llmtasks.store.documents import mark_replaced
from llmtasks.store.engine import Database, epoch
from llmtasks.store.paging import pages
from llmtasks.store.tables import (
    ENDED,
    OPEN,
    PINNING,
    batches,
    contents,
    documents,
    jobs,
    outbox,
    provider_calls,
    removals,
    results,
    turns,
)

#: Rows looked at by one transaction.
CHUNK = 100
DAY_S = 86_400.0
#: Seconds by which clocks may differ.
CLOCKS_S = 3_600.0
_TURN = "retention"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """How many of each were removed, or would be. `answers` of calls go, their numbers stay.

    `jobs` are with their results and calls, those of `batches` among them.
    """

    answers: int = 0
    jobs: int = 0
    batches: int = 0
    documents: int = 0
    texts: int = 0

    def counts(self) -> dict[str, int]:
        """By their names."""
        return asdict(self)

    def __add__(self, other: Removed) -> Removed:
        added = other.counts()
        return Removed(**{name: count + added[name] for name, count in self.counts().items()})

    def __bool__(self) -> bool:
        return any(self.counts().values())


def turn(db: Database, interval_s: float) -> bool:
    """Whether it is the caller's turn: of all who ask, one per `interval_s` seconds wins."""
    with db.read() as connection:  # mostly it is not, and no writer is stopped
        taken = connection.execute(
            sa.select(turns.c.name).where(
                turns.c.name == _TURN, turns.c.taken_at > epoch() - interval_s
            )
        ).first()
    if taken is not None:
        return False
    with db.write() as connection:
        statement = dialect.insert(connection, turns).values(name=_TURN, taken_at=epoch())
        won = connection.execute(
            statement.on_conflict_do_update(
                index_elements=[turns.c.name],
                set_={"taken_at": statement.excluded.taken_at},
                where=turns.c.taken_at <= statement.excluded.taken_at - interval_s,
            ).returning(turns.c.name)
        ).first()
    return won is not None


def tidy(db: Database, keep: Retention) -> Iterator[Removed]:
    """Remove all that is older than it is kept; one value per transaction.

    Jobs go before the documents that they need, and those before their texts.
    """
    for count in calls.forget_answers(db, keep.answers_days * DAY_S):
        yield Removed(answers=count)
    if keep.jobs_days is not None:
        for count in remove_jobs(db, keep.jobs_days * DAY_S):
            yield Removed(jobs=count)
        for count in remove_batches(db, keep.jobs_days * DAY_S):
            yield Removed(batches=count)
        for count in finish_removals(db, keep.jobs_days * DAY_S):
            yield Removed(jobs=count)
    if keep.documents_days is not None:
        for count in remove_documents(db, keep.documents_days * DAY_S):
            yield Removed(documents=count)
    if keep.texts_days is not None:
        for count in remove_texts(db, keep.texts_days * DAY_S):
            yield Removed(texts=count)


def due(db: Database, keep: Retention) -> Removed:
    """What `tidy` would remove now, without what becomes free only by it."""
    found = Removed(answers=_count(db, calls.forgettable(keep.answers_days * DAY_S)))
    if keep.jobs_days is not None:
        older_than_s = keep.jobs_days * DAY_S
        singles = _ended_singles(older_than_s).where(_removable(older_than_s))
        going = _of_removals().where(_removable(older_than_s))
        found += Removed(jobs=_count(db, singles) + _count(db, going))
        for batch_id in _old_batches(db, older_than_s):
            found += Removed(batches=1, jobs=_count(db, _of_batch(batch_id)))
    if keep.documents_days is not None:
        old = _old_documents(keep.documents_days * DAY_S).where(~_NAMED)
        found += Removed(documents=_count(db, old))
    if keep.texts_days is not None:
        old = _replaced(keep.texts_days * DAY_S).where(~_CURRENT, ~_PINNED)
        found += Removed(texts=_count(db, old))
    return found


# --- jobs ------------------------------------------------------------------------------------------


def remove_jobs(db: Database, older_than_s: float) -> Iterator[int]:
    """Remove jobs of no batch that ended so many seconds ago, with all that belongs to them."""
    order = (jobs.c.finished_at, jobs.c.seq)
    for page in pages(db, _ended_singles(older_than_s), order, CHUNK):
        yield _remove(db, [seq for _, seq in page], older_than_s)


def remove_batches(db: Database, older_than_s: float) -> Iterator[int]:
    """Let batches be gone whose jobs all ended so many seconds ago; `finish_removals` does the rest."""
    for batch_id in _old_batches(db, older_than_s):
        with db.write() as connection:
            gone = _let_go(connection, batch_id)
        yield int(gone)


def finish_removals(db: Database, older_than_s: float) -> Iterator[int]:
    """Remove the jobs of batches that are gone. One that was retried meanwhile is kept until it ends."""
    with db.read() as connection:
        going = connection.execute(sa.select(removals.c.batch_id)).scalars().all()
    for batch_id in going:
        for page in pages(db, _of_batch(batch_id), (jobs.c.seq,), CHUNK):
            yield _remove(db, [seq for (seq,) in page], older_than_s)
        left = sa.exists().where(jobs.c.batch_id == batch_id)
        with db.write() as connection:
            connection.execute(sa.delete(removals).where(removals.c.batch_id == batch_id, ~left))


def _ended_singles(older_than_s: float) -> Select[Any]:
    return sa.select(jobs.c.finished_at, jobs.c.seq).where(
        jobs.c.batch_id.is_(None), jobs.c.finished_at < epoch() - older_than_s
    )


def _of_batch(batch_id: str) -> Select[Any]:
    return sa.select(jobs.c.seq).where(jobs.c.batch_id == batch_id)


def _of_removals() -> Select[Any]:
    """The jobs that are left of batches that are gone."""
    return sa.select(jobs.c.seq).where(jobs.c.batch_id.in_(sa.select(removals.c.batch_id)))


def _removable(older_than_s: float) -> ColumnElement[bool]:
    """Ended so long ago, delivered to the user's sink, and its caller told.

    Its last message was sent so long ago, too: one that is still under way would find no row, and make one.
    """
    before = epoch() - older_than_s
    undelivered = sa.exists().where(outbox.c.job_id == jobs.c.job_id)
    unsent = sa.and_(jobs.c.sent_at.is_(None), jobs.c.direct.is_(False))
    told = sa.or_(jobs.c.sent_at < before, unsent)
    return sa.and_(ENDED, jobs.c.finished_at < before, told, ~undelivered)


def may_be_removed(sent_at: float, now: float, jobs_days: float | None) -> bool:
    """Whether the row of a job whose last message was sent then may be removed by `now`.

    Both are seconds since the epoch, by the clocks of two machines, neither of them the database's.
    """
    return jobs_days is not None and now - sent_at > jobs_days * DAY_S - CLOCKS_S


def _remove(db: Database, seqs: Sequence[int], older_than_s: float) -> int:
    """Remove those of the jobs that may go. What somebody holds is left for another time."""
    with db.write() as connection:
        ids = (
            connection.execute(
                sa.select(jobs.c.job_id)
                .where(jobs.c.seq.in_(seqs), _removable(older_than_s))
                .with_for_update(skip_locked=True)
            )
            .scalars()
            .all()
        )
        for table in (results, provider_calls, jobs):
            connection.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
    return len(ids)


def _old_batches(db: Database, older_than_s: float) -> Iterator[str]:
    """The batches that were made so long ago and of which no job has to stay."""
    old = sa.select(batches.c.created_at, batches.c.batch_id).where(
        batches.c.created_at < epoch() - older_than_s
    )
    for page in pages(db, old, (batches.c.created_at, batches.c.batch_id), CHUNK):
        yield from (batch_id for _, batch_id in page if not _stays(db, batch_id, older_than_s))


def _stays(db: Database, batch_id: str, older_than_s: float) -> bool:
    """Whether a job of the batch has to stay."""
    staying = (
        _of_batch(batch_id)
        .where(_removable(older_than_s).is_not(True))
        # Those that were submitted last end last: mostly the first look says it.
        .order_by(jobs.c.seq.desc())
        .limit(1)
    )
    with db.read() as connection:
        return connection.execute(staying).first() is not None


def _let_go(connection: Connection, batch_id: str) -> bool:
    """Take the batch from everybody's eyes, unless somebody retries it or adds to it meanwhile."""
    held = connection.execute(
        sa.select(batches.c.batch_id)
        .where(batches.c.batch_id == batch_id)
        .with_for_update(skip_locked=True)
    ).first()
    # A statement of its own: it sees what was committed before the row was ours.
    still_open = _of_batch(batch_id).where(OPEN).order_by(jobs.c.state).limit(1)
    if held is None or connection.execute(still_open).first() is not None:
        return False
    connection.execute(
        dialect.insert(connection, removals)
        .values(batch_id=batch_id, started_at=epoch())
        .on_conflict_do_nothing()
    )
    connection.execute(sa.delete(batches).where(batches.c.batch_id == batch_id))
    return True


# --- documents and texts ---------------------------------------------------------------------------

#: A job that has not completed is about the document.
_NAMED = sa.exists().where(
    jobs.c.tenant == documents.c.tenant, jobs.c.document_id == documents.c.document_id, PINNING
)
#: A document has the text.
_CURRENT = sa.exists().where(
    documents.c.tenant == contents.c.tenant, documents.c.content_hash == contents.c.content_hash
)
#: A job that has not completed was submitted with the text.
_PINNED = sa.exists().where(
    jobs.c.tenant == contents.c.tenant, jobs.c.document_hash == contents.c.content_hash, PINNING
)


def remove_documents(db: Database, older_than_s: float) -> Iterator[int]:
    """Remove documents that were last changed so many seconds ago; their texts count as replaced now."""
    order = (documents.c.updated_at, documents.c.tenant, documents.c.document_id)
    old = documents.c.updated_at < epoch() - older_than_s
    for page in pages(db, _old_documents(older_than_s), order, CHUNK):
        gone: list[tuple[str, str]] = []
        with db.write() as connection:
            # One by one, because SQLite finds a pair of keys only so; in the order in which documents are
            # added, because PostgreSQL holds each from here on.
            for tenant, document_id in sorted((tenant, name) for _, tenant, name in page):
                one = sa.and_(documents.c.tenant == tenant, documents.c.document_id == document_id)
                removed = connection.execute(
                    sa.delete(documents)
                    .where(one, old, ~_NAMED)
                    .returning(documents.c.content_hash)
                ).scalars()
                gone.extend((tenant, content_hash) for content_hash in removed)
            mark_replaced(connection, gone)
        yield len(gone)


def remove_texts(db: Database, older_than_s: float) -> Iterator[int]:
    """Remove texts that were replaced so many seconds ago and that no document and no job needs."""
    order = (contents.c.replaced_at, contents.c.tenant, contents.c.content_hash)
    for page in pages(db, _replaced(older_than_s), order, CHUNK):
        with db.write() as connection:
            gone = sum(
                _remove_text(connection, tenant, content_hash, older_than_s)
                for _, tenant, content_hash in page
            )
        yield gone


def _remove_text(
    connection: Connection, tenant: str, content_hash: str, older_than_s: float
) -> bool:
    one = sa.and_(contents.c.tenant == tenant, contents.c.content_hash == content_hash)
    old = contents.c.replaced_at < epoch() - older_than_s
    # Held first, so that nobody takes it up again between the question and the answer.
    held = sa.select(contents.c.content_hash).where(one, old).with_for_update(skip_locked=True)
    if connection.execute(held).first() is None:
        return False
    connection.execute(sa.update(contents).where(one, _CURRENT).values(replaced_at=None))
    gone = sa.delete(contents).where(one, ~_CURRENT, ~_PINNED).returning(contents.c.content_hash)
    return connection.execute(gone).first() is not None


def _old_documents(older_than_s: float) -> Select[Any]:
    return sa.select(documents.c.updated_at, documents.c.tenant, documents.c.document_id).where(
        documents.c.updated_at < epoch() - older_than_s
    )


def _replaced(older_than_s: float) -> Select[Any]:
    return sa.select(contents.c.replaced_at, contents.c.tenant, contents.c.content_hash).where(
        contents.c.replaced_at < epoch() - older_than_s
    )


def _count(db: Database, query: Select[Any]) -> int:
    with db.read() as connection:
        return connection.execute(
            sa.select(sa.func.count()).select_from(query.subquery())
        ).scalar_one()
