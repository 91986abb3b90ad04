"""Children that are kept running: started again when they end, unless they cannot start at all."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtasks import processes

#: Seconds before a child that ended is started again: doubled each time it ends, up to the last.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

#: A child that ran so many seconds has left its troubles behind.
STEADY_S = 60.0

#: Of a child that ended so often in a row before it was ready, nothing better is to be expected.
TRIES = 3

#: Lines of its log that say why it cannot start.
LAST_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How often a child ended in a row: at all, and before it was ready."""

    ends: int = 0
    failed_starts: int = 0

    def ended(self, *, ready: bool, ran_s: float) -> History:
        """The history after one more end."""
        return History(
            ends=1 if ran_s >= STEADY_S else self.ends + 1,
            failed_starts=0 if ready else self.failed_starts + 1,
        )

    @property
    def hopeless(self) -> bool:
        """It is not to be started again."""
        return self.failed_starts >= TRIES

    @property
    def pause_s(self) -> float:
        """Seconds until it is started again."""
        doubled: float = FIRST_PAUSE_S * 2.0 ** min(max(self.ends - 1, 0), 10)
        return min(LONGEST_PAUSE_S, doubled)


class Member:
    """A child that is kept running.

    Args:
        name: What it is called.
        argv: What to run.
        log: The file of its output; what an earlier run left there is kept beside it, once.
        is_ready: Whether the child with this process id has begun its work.
        env: Its environment; None: ours.
        orphaned: The signal it gets when this process is killed.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        *,
        is_ready: Callable[[int], bool],
        env: Mapping[str, str] | None = None,
        orphaned: signal.Signals = signal.SIGKILL,
    ) -> None:
        self.name = name
        self.log = log
        self.ready = False
        self._argv = argv
        self._env = env
        self._orphaned = orphaned
        self._is_ready = is_ready
        self._history = History()
        self._process: subprocess.Popen[str] | None = None
        self._due = 0.0
        self._started = 0.0
        self._log_from = 0

    @property
    def hopeless(self) -> bool:
        """It could not be started, and will not be again."""
        return self._history.hopeless

    @property
    def running(self) -> bool:
        """There is a child, and it has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the child; None while there is none."""
        return None if self._process is None else self._process.pid

    def look(self) -> str | None:
        """See to it: start it when that is due. What there is to say, if anything."""
        if self.hopeless:
            return None
        if self._process is None:
            if time.monotonic() >= self._due:
                self._process = self._start()
            return None
        if (code := self._process.poll()) is not None:
            return self._ended(code)
        if not self.ready and self._is_ready(self._process.pid):
            self.ready = True
            return f"{self.name} is back" if self._history.ends else None
        return None

    def ask_to_end(self) -> None:
        """SIGTERM. It is not started again unless it is looked at."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, grace_s: float = 0.0) -> None:
        """End it: SIGTERM, and SIGKILL after the grace."""
        if self._process is not None:
            processes.stop(self._process, grace_s)

    def last_words(self) -> list[str]:
        """The last lines that the last child wrote."""
        with self.log.open("rb") as file:
            file.seek(self._log_from)
            return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]

    def _start(self) -> subprocess.Popen[str]:
        if not self._history.ends:
            keep_last(self.log)
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        self._started = time.monotonic()
        return processes.start(self._argv, log=self.log, env=self._env, orphaned=self._orphaned)

    def _ended(self, code: int) -> str:
        ran_s = time.monotonic() - self._started
        self._history = self._history.ended(ready=self.ready, ran_s=ran_s)
        self._process = None
        self.ready = False
        how = how_it_ended(code)
        if self.hopeless:
            return f"{self.name} cannot start: it ended {TRIES} times ({how}); see {self.log}"
        pause_s = self._history.pause_s
        self._due = time.monotonic() + pause_s
        return f"{self.name} ended ({how}); starting it again in {pause_s:.0f} s; see {self.log}"


def how_it_ended(returncode: int) -> str:
    """`exit 1`, or `SIGKILL`."""
    if returncode >= 0:
        return f"exit {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def keep_last(log: Path) -> None:
    """Make place for a new log; the one before stays as `name.log.1`."""
    if log.exists():
        log.replace(log.with_name(f"{log.name}.1"))


def wait_for(members: Sequence[Member], seconds: float, hurried: Callable[[], bool]) -> None:
    """Wait until all have ended, at most so long, or until somebody is in a hurry."""
    deadline = time.monotonic() + seconds
    while any(member.running for member in members):
        if time.monotonic() > deadline or hurried():
            return
        time.sleep(0.05)
