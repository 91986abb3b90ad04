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
    """A write of one thread, which waits to be told that it is done, or that it is to lead."""

    def __init__(self, action: Callable[[Connection], T]) -> None:
        self.action = action
        self.told_to_lead: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._value: T | None = None
        # Whoever leads may come to an end of its own.
        self._error: BaseException | None = StoreUnavailable("the write was not finished")

    def done(self, value: T) -> None:
        """It is committed."""
        self._value, self._error = value, None

    def failed(self, error: BaseException) -> None:
        """It is not, or may not be."""
        self._error = error

    def result(self) -> T:
        """What the action returned, committed."""
        error, self._error = self._error, None  # which knows the frames that know this
        if error is not None:
            raise error
        return cast("T", self._value)


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
        if leads or mine.told_to_lead.get():
            self._lead()
        return mine.result()

    def _lead(self) -> None:
        """Write what waits, the leader's own first, and let the next one lead."""
        taken: list[_Pending[Any]] = []
        try:
            if not self._done_together(taken):
                self._each_alone(taken)
        finally:
            if not taken:
                self._take(taken, 1)  # the leader's own: whatever went wrong, another one leads
            self._hand_over(taken)

    def _done_together(self, taken: list[_Pending[Any]]) -> bool:
        """Whether all that is taken from the line has its outcome."""
        try:
            with self._write() as connection:
                self._take(taken, MOST)  # now, and with those who came while another one wrote
                values = [one.action(connection) for one in taken]
        except BaseException as error:  # noqa: BLE001  # handed to whose write it is
            if not taken:
                # Nobody could write, for as long as is waited: also those who came last are told.
                self._take(taken, len(self._pending))
                _fail(taken, error)
                return True
            if len(taken) == 1:
                taken[0].failed(error)
            return len(taken) == 1
        for one, value in zip(taken, values, strict=True):
            one.done(value)
        return True

    def _each_alone(self, taken: Sequence[_Pending[Any]]) -> None:
        for number, one in enumerate(taken):
            began = False
            try:
                with self._write() as connection:
                    began = True
                    value = one.action(connection)
            except BaseException as error:  # noqa: BLE001
                if not began:
                    _fail(taken[number:], error)
                    return
                one.failed(error)
            else:
                one.done(value)

    def _take(self, taken: list[_Pending[Any]], most: int) -> None:
        with self._lock:
            taken.extend(self._pending.popleft() for _ in range(min(most, len(self._pending))))

    def _hand_over(self, taken: Sequence[_Pending[Any]]) -> None:
        with self._lock:
            following = self._pending[0] if self._pending else None
            self._led = following is not None
        if following is not None:
            following.told_to_lead.put(True)
        for one in taken[1:]:
            one.told_to_lead.put(False)


def _fail(some: Sequence[_Pending[Any]], error: BaseException) -> None:
    """Tell each of them, by an exception of its own: it is raised in a thread of its own."""
    for one in some[1:]:
        copy = StoreUnavailable(str(error)) if isinstance(error, StoreUnavailable) else error
        copy.__cause__ = error.__cause__
        one.failed(copy)
    some[0].failed(error)
