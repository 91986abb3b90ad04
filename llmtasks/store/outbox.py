"""The outbox: ended jobs that are still to be delivered to the user's sink, at least once.

A row is written in the transaction that ends its job. A worker process claims rows for a while, renews the
claims of those it has begun to deliver, and removes what was delivered; when it dies the claims run out. A
job that is retried and ends again while its row is claimed is not removed, but delivered again: `due_at`
tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from llmtasks.store import dialect
from llmtasks.store.engine import Database, epoch
from llmtasks.store.tables import jobs, outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A claimed row. `tries` have failed before; `due_at` is on the database's clock."""

    job_id: str
    due_at: float
    tries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What the sink has still to be given.

    `oldest_s` is how many seconds ago the first of these jobs ended, None when there is none; `failing`
    counts those that the sink refused at least once.
    """

    count: int
    oldest_s: float | None
    failing: int


def put(connection: Connection, job_ids: Sequence[str]) -> None:
    """Have these jobs delivered, which end in this transaction."""
    if not job_ids:
        return
    row = dialect.insert(connection, outbox).values(due_at=epoch(), tries=0)
    connection.execute(
        row.on_conflict_do_update(
            index_elements=[outbox.c.job_id],
            set_={"due_at": row.excluded.due_at, "tries": 0},
        ),
        [{"job_id": job_id} for job_id in job_ids],
    )


_FREE = sa.and_(
    outbox.c.due_at <= epoch(),
    sa.or_(outbox.c.claimed_until.is_(None), outbox.c.claimed_until < epoch()),
)


def claim(db: Database, worker_id: str, limit: int, lease_s: float) -> list[Delivery]:
    """Take the next due rows for `lease_s` seconds, in the order of ending. Nobody else gets them."""
    rows = sa.select(outbox.c.job_id).where(_FREE).order_by(outbox.c.due_at).limit(limit)
    with db.read() as connection:  # most of the time there is nothing, and no writer is stopped
        if connection.execute(rows.limit(1)).first() is None:
            return []
    picked = rows.with_for_update(skip_locked=True).cte("picked")
    with db.write() as connection:
        claimed = connection.execute(
            sa.update(outbox)
            .where(outbox.c.job_id.in_(sa.select(picked.c.job_id)))
            .values(claimed_by=worker_id, claimed_until=epoch() + lease_s)
            .returning(outbox.c.job_id, outbox.c.due_at, outbox.c.tries)
        ).all()
    found = [Delivery(**row._asdict()) for row in claimed]
    return sorted(found, key=lambda one: one.due_at)


def renew(db: Database, worker_id: str, job_ids: Sequence[str], lease_s: float) -> None:
    """Keep the claims of rows that are delivered, or are being delivered, and not settled yet."""
    with db.write() as connection:
        connection.execute(
            sa.update(outbox)
            .where(outbox.c.job_id.in_(job_ids), outbox.c.claimed_by == worker_id)
            .values(claimed_until=epoch() + lease_s)
        )


def settle(
    db: Database,
    worker_id: str,
    *,
    delivered: Iterable[Delivery] = (),
    failed: Iterable[tuple[Delivery, float]] = (),
    untouched: Iterable[Delivery] = (),
) -> None:
    """Give claimed rows back: the delivered are removed, the failed wait for so many seconds.

    What somebody else has claimed meanwhile, because this claim ran out, is theirs to settle.
    """
    gone = [_key(one) for one in delivered]
    later = [{**_key(one), "the_delay": delay} for one, delay in failed]
    back = [*gone, *(_key(one) for one in untouched), *later]
    ours = (outbox.c.job_id == sa.bindparam("the_job"), outbox.c.claimed_by == worker_id)
    same_end = outbox.c.due_at == sa.bindparam("the_end")
    with db.write() as connection:
        if gone:
            connection.execute(sa.delete(outbox).where(*ours, same_end), gone)
        if later:
            connection.execute(
                sa.update(outbox)
                .where(*ours, same_end)
                .values(
                    due_at=epoch() + sa.bindparam("the_delay", type_=sa.Double()),
                    tries=outbox.c.tries + 1,
                ),
                later,
            )
        if back:
            # Those that ended again while they were delivered are among these.
            connection.execute(
                sa.update(outbox).where(*ours).values(claimed_by=None, claimed_until=None),
                [{"the_job": one["the_job"]} for one in back],
            )


def waiting(db: Database) -> Waiting:
    """How much the sink has still to be given."""
    with db.read() as connection:
        row = connection.execute(
            sa.select(
                sa.func.count().label("waiting"),
                (epoch() - sa.func.min(jobs.c.finished_at)).label("oldest_s"),
                sa.func.count(sa.case((outbox.c.tries > 0, 1))).label("failing"),
            ).select_from(outbox.join(jobs))
        ).one()
    return Waiting(count=row.waiting, oldest_s=row.oldest_s, failing=row.failing)


def _key(one: Delivery) -> dict[str, object]:
    return {"the_job": one.job_id, "the_end": one.due_at}
