"""One asyncio loop per process, on a thread of its own: Redis and the providers live there.

Celery's slots are threads and SQL stays on them; Celery 5.7 has no asyncio pool.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Running(Generic[T]):
    """A coroutine at work on the loop. Its future resolves when it has ended, also after `cancel`.

    (`asyncio.run_coroutine_threadsafe` resolves a cancelled future at once, while the coroutine is still
    booking what it did.)
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> None:
        self.future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, coroutine)

    def cancel(self) -> None:
        """Ask it to end."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _start(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._ended)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.future.set_exception(concurrent.futures.CancelledError())
        elif (error := task.exception()) is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(task.result())


class LoopThread:
    """Runs coroutines for other threads.

    Started explicitly, after any fork: a loop does not survive one.
    """

    def __init__(self, name: str = "llmtasks-loop") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; returns when the loop runs."""
        self._thread.start()
        self.submit(_nothing()).result()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Schedule a coroutine; cancelling the future cancels the coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def soon(self, function: Callable[[], None]) -> None:
        """Run a function on the loop, after what was given to it before. From any thread."""
        self._loop.call_soon_threadsafe(function)

    def start_task(self, coroutine: Coroutine[Any, Any, T]) -> Running[T]:
        """Start a coroutine that may be cancelled and whose end matters."""
        return Running(self._loop, coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Schedule a coroutine and wait for its result, `timeout` seconds at the most."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()
            raise

    def answers(self, timeout: float) -> bool:
        """Whether the loop still turns."""
        try:
            self.run(_nothing(), timeout)
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Cancel what still runs, let it clean up, and end the thread."""
        with contextlib.suppress(TimeoutError):
            self.run(self._cancel_all(), timeout=5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _cancel_all(self) -> None:
        me = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not me]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _nothing() -> None:
    return None
