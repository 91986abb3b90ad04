"""Loops that work in the background for as long as their process lives, whatever happens in one turn."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from llmtasks import logs
from llmtasks.admission.connection import outage


class Turns:
    """The turns of one loop. Trouble in one is logged as `event`, if it is new, and ends nothing.

    That Redis is away is a warning; all else is a fault of ours, and an error. `well` says whether the
    last turn was without any.
    """

    def __init__(self, logger: logging.Logger, event: str) -> None:
        self.well = True
        self._log = logger
        self._event = event
        self._trouble = ""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Do what is within; only being cancelled gets out of it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # nobody would begin the loop again
            self._met(error)
        else:
            self.went_well()

    def went_well(self) -> None:
        """What goes wrong from now on is new."""
        self.well, self._trouble = True, ""

    def _met(self, error: Exception) -> None:
        why = type(error).__name__
        away = outage(error) is not None
        trouble = "away" if away else why
        if trouble != self._trouble:
            if away:
                logs.warning(self._log, self._event, why=why)
            else:
                logs.error(self._log, self._event, why=why, at=logs.place(error))
        self.well, self._trouble = False, trouble
