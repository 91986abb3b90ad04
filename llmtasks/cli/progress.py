"""Follow a batch on stderr until it has ended: a live screen on a terminal, else a plain line on change."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmtasks import client, watching
from llmtasks.cli.output import duration, money, percent, spoken, visible
from llmtasks.cli.pace import Observation, Pace
from llmtasks.errors import StoreUnavailable
from llmtasks.store.batches import BatchStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Seconds between two frames, and the least between two questions to the database.
TICK_S = 0.5
#: So many times the cost of a question passes before the next one: 5 % of the time at most.
SPARING = 20
#: Seconds until a database that was away is asked again.
OUTAGE_S = 2.0
#: Seconds without a worker before that is said: one that was just started needs a few.
GRACE_S = 5.0
#: Seconds between two plain lines at least.
LINE_S = 5.0
#: Widest frame, in columns; and the reasons of waiting shown at once.
WIDTH = 80
REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is known of a batch at one moment.

    `elapsed_s` is since its submission, `next_try_s` until the first waiting job's time has come.
    `unserved` are the queues it needs that no worker serves, `outage` why nothing new is known.
    """

    status: BatchStatus
    pace: Pace
    elapsed_s: float
    next_try_s: float | None = None
    unserved: tuple[str, ...] = ()
    outage: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status.state != "running"


def follow(
    batch_id: str,
    *,
    alive: Callable[[Sight], None] = lambda _sight: None,
    own_worker: bool = False,
    plain: bool | None = None,
) -> BatchStatus:
    """Show a batch's progress on stderr until it has ended; its last status.

    Args:
        batch_id: A batch, a Celery group or a single job.
        alive: Called with what is seen about twice a second, while it has not ended; what it raises ends
            this.
        own_worker: The caller has started a worker, which may not be there yet.
        plain: One line on change instead of a live screen. Default: as stderr is a terminal.

    A database that is away for a while is shown and waited for. Ctrl-C comes through as
    `KeyboardInterrupt`, with the screen in order; the batch goes on.

    Raises:
        UnknownJob: Nothing has this id.
        StoreUnavailable: The database did not answer the first question.
    """
    with _lines() if _is_plain(wanted=plain) else _screen() as show:
        for sight in sights(batch_id):
            show(replace(sight, unserved=()) if own_worker else sight)
            if not sight.has_ended:
                alive(sight)
    return sight.status


def sights(batch_id: str) -> Iterator[Sight]:
    """What is seen of a batch, tick by tick; the last one shows it ended. Raises as `follow`."""
    watcher = _Watcher(batch_id)
    while True:
        sight = watcher.look()
        yield sight
        if sight.has_ended:
            return
        time.sleep(TICK_S)


class _Watcher:
    """Asks the database as seldom as its answers are dear, and remembers what it said."""

    def __init__(self, batch_id: str) -> None:
        self._batch_id = batch_id
        self._due = 0.0
        self._pace = Pace()
        self._outage = ""
        self._next_try: float | None = None
        self._unserved: tuple[str, ...] = ()
        self._unserved_since = 0.0
        self._ask()
        times = watching.times(batch_id)
        self._submitted = time.monotonic() - ((times.ended_at or times.now) - times.submitted_at)

    def look(self) -> Sight:
        """The newest that is known; asks for more when it is time to."""
        if time.monotonic() >= self._due:
            try:
                self._ask()
            except StoreUnavailable as error:
                self._outage = str(error)
                self._due = time.monotonic() + OUTAGE_S
        now = time.monotonic()
        late = now - self._unserved_since >= GRACE_S
        return Sight(
            status=self._status,
            pace=self._pace,
            elapsed_s=now - self._submitted,
            next_try_s=None if self._next_try is None else max(0.0, self._next_try - now),
            unserved=self._unserved if late else (),
            outage=self._outage,
        )

    def _ask(self) -> None:
        began = time.monotonic()
        self._status = client.status(self._batch_id)
        next_try_s = watching.next_try_s(self._batch_id) if self._status.waiting else None
        unserved = tuple(watching.unserved(self._batch_id))
        now = time.monotonic()
        self._outage = ""
        self._due = now + max(TICK_S, SPARING * (now - began))
        self._pace = self._pace.after(_observation(began, self._status))
        self._next_try = None if next_try_s is None else now + next_try_s
        if unserved != self._unserved:
            self._unserved, self._unserved_since = unserved, now


def frame(sight: Sight) -> RenderableType:
    """The live screen, for any width."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    status = sight.status
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, text in _rows(sight):
        table.add_row(name, Text(text))
    bar = Table.grid(expand=True)  # by itself a bar ends without a line's end
    bar.add_row(ProgressBar(total=max(1, status.total), completed=_ended(status)))
    return Group(
        bar,
        table,
        *(Text(remark, style="yellow") for remark in remarks(sight)),
    )


def line(sight: Sight) -> str:
    """The same as one line without control characters."""
    told = "; ".join(text for _, text in _rows(sight))
    return "; ".join([told, *remarks(sight)])


def _rows(sight: Sight) -> Iterator[tuple[str, str]]:
    status = sight.status
    ended = _ended(status)
    yield "done", f"{ended:,} of {status.total:,} ({percent(ended, status.total)})"
    counts = (
        (status.failed, "failed"),
        (status.cancelled, "cancelled"),
        (status.cached, "from the store"),
        (status.running, "running"),
        (status.waiting, "waiting"),
        (status.queued, "queued"),
    )
    yield "jobs", ", ".join(f"{count:,} {name}" for count, name in counts if count) or "all done"
    tokens = f"{status.input_tokens:,} tokens in, {status.output_tokens:,} out"
    yield "spent", f"{tokens}, cost {money(status.cost_usd)}"
    yield "time", ", ".join(_times(sight))


def _times(sight: Sight) -> Iterator[str]:
    yield f"{duration(sight.elapsed_s)} elapsed"
    rate = sight.pace.per_second()
    if rate is not None:
        yield f"{60 * rate:,.0f} jobs/min"
    if not sight.has_ended:
        eta = sight.pace.eta_s()
        yield "time left unknown" if eta is None else f"about {duration(eta)} left"


def remarks(sight: Sight) -> Iterator[str]:
    """What keeps the batch from going on."""
    if sight.outage:
        yield f"the database does not answer, trying again: {visible(sight.outage)}"
    if sight.status.waiting:
        waiting = "; ".join(_reasons(sight.status))
        # In the past it is only a question of the feeder's next turn.
        soon = sight.next_try_s and f", next try in {duration(sight.next_try_s)}"
        yield f"{waiting}{soon or ''}"
    if sight.unserved:
        queues = ", ".join(sight.unserved)
        yield f"no worker serves {queues}: start one with: llmtasks worker"


def _reasons(status: BatchStatus) -> Iterator[str]:
    """Why jobs wait, the most frequent reasons first."""
    reasons = sorted(status.reasons.items(), key=lambda item: (-item[1], item[0]))
    for reason, count in reasons[:REASONS]:
        verb = "waits" if count == 1 else "wait"
        yield f"{count:,} {verb}: {spoken(reason)}"
    if len(reasons) > REASONS:
        rest = sum(count for _, count in reasons[REASONS:])
        yield f"{rest:,} more for {len(reasons) - REASONS} other reasons"


def _ended(status: BatchStatus) -> int:
    return status.completed + status.failed + status.cancelled


def _observation(at: float, status: BatchStatus) -> Observation:
    return Observation(
        at=at,
        total=status.total,
        ended=_ended(status),
        worked=status.completed - status.cached,
        running=status.running,
    )


def _is_plain(*, wanted: bool | None) -> bool:
    if wanted is not None:
        return wanted
    return not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb", "unknown")


@contextlib.contextmanager
def _screen() -> Iterator[Callable[[Sight], None]]:
    """Show on a live screen, which is taken away at the end."""
    from rich.console import Console
    from rich.constrain import Constrain
    from rich.live import Live

    console = Console(stderr=True, markup=False, emoji=False, highlight=False)
    # Standard output belongs to the command's data.
    with Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False) as live:

        def show(sight: Sight) -> None:
            live.update(Constrain(frame(sight), WIDTH), refresh=True)

        yield show


@contextlib.contextmanager
def _lines() -> Iterator[Callable[[Sight], None]]:
    """Print a line when something has changed, not too often; the last one always."""
    shown: object = None
    due = 0.0

    def show(sight: Sight) -> None:
        nonlocal shown, due
        now = time.monotonic()
        news = (sight.status, sight.unserved, sight.outage)
        if news == shown or (now < due and not sight.has_ended):
            return
        shown, due = news, now + LINE_S
        print(line(sight), file=sys.stderr, flush=True)

    yield show
