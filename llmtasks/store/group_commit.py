"""Group commit: what threads want to write at the same time goes into one transaction.

SQLite has one writer, and each commit waits for the disk. With many slots, most of which wait for it, a
transaction for each is the price of a disk write and of several changes of thread; together they share it.
The technique is that of database logs (DeWitt et al., "Implementation techniques for main memory database
systems", 1984).
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar, cast

from sqlalchemy.engine import Connection

from llmtasks.errors import StoreUnavailable

T = TypeVar("T")

#: Writes of one transaction at the most: other processes wait as long for theirs.
MOST = 64


class _Pending(Generic[T]):
    """A write of one thread, which waits to be told that it is done, or that it leads."""

    def __init__(self, action: Callable[[Connection], T]) -> None:
        self.action = action
        self.leads: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.value: T | None = None
        self.error: BaseException | None = None

    def result(self) -> T:
        """What the action returned, committed."""
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


class GroupCommit:
    """Runs actions in transactions of `write`, on the thread of one of those who wait."""

    def __init__(self, write: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._write = write
        self._pending: deque[_Pending[Any]] = deque()
        self._led = False
        self._lock = threading.Lock()

    def __call__(self, action: Callable[[Connection], T]) -> T:
        """Run `action` with others' and commit; what it returned.

        It may run twice: when one beside it fails, all are rolled back and run again, each alone.

        Raises:
            StoreUnavailable: As `Database.write`; it may or may not be committed.
        """
        mine = _Pending(action)
        with self._lock:
            self._pending.append(mine)
            leads, self._led = not self._led, True
        if leads or mine.leads.get():
            self._lead()
        return mine.result()

    def _lead(self) -> None:
        """Write what waits, the leader's own first, and let the next one lead."""
        with self._lock:
            some = [self._pending.popleft() for _ in range(min(MOST, len(self._pending)))]
        self._commit(some)
        with self._lock:
            following = self._pending[0] if self._pending else None
            self._led = following is not None
        if following is not None:
            following.leads.put(True)
        for one in some[1:]:
            one.leads.put(False)

    def _commit(self, some: Sequence[_Pending[Any]]) -> None:
        try:
            with self._write() as connection:
                values = [one.action(connection) for one in some]
        except StoreUnavailable as error:
            for one in some:
                one.error = StoreUnavailable(str(error))
        except BaseException as error:  # noqa: BLE001  # handed to whose action it is
            if len(some) == 1:
                some[0].error = error
                return
            for one in some:
                self._commit([one])
        else:
            for one, value in zip(some, values, strict=True):
                one.value = value
