"""Being asked to stop: Ctrl-C, SIGTERM, and a terminal that is closed."""

from __future__ import annotations

import signal
from typing import Any


class Asked:
    """How often we were asked to stop. Until `counting`, being asked is a KeyboardInterrupt.

    A signal handler that raises does so anywhere, also where the exception is lost (in a fork, in a
    finalizer) or leaves half of something behind. So once there is something to put in order, the handler
    only counts, and who waits looks.
    """

    def __init__(self) -> None:
        self.times = 0
        self._counting = False

    def listen(self) -> None:
        """Hear the signals; those that are ignored, as under nohup, stay so."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hear)

    def counting(self) -> None:
        """From now on somebody looks at `times`."""
        self._counting = True

    def _hear(self, _number: int, _frame: Any) -> None:
        self.times += 1
        if not self._counting:
            raise KeyboardInterrupt
