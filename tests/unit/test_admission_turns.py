"""A loop in the background outlives whatever one of its turns meets, and says it once."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis import exceptions

from llmtasks import logs
from llmtasks.admission.turns import Turns

OUTAGES = (
    exceptions.ConnectionError("gone"),
    exceptions.ReadOnlyError("READONLY"),
    exceptions.ResponseError("MISCONF no disk"),
    OSError(),
)
FAULTS = (exceptions.ResponseError("ERR in script"), ValueError("a text that nobody may read"))


def met(turns: Turns, *errors: BaseException | None) -> None:
    for error in errors:
        with turns.turn():
            if error is not None:
                raise error


@pytest.fixture
def turns() -> Turns:
    return Turns(logs.get("admission"), "broken")


@pytest.mark.parametrize("error", [*OUTAGES, *FAULTS], ids=repr)
def test_only_a_fault_of_ours_is_an_error(
    turns: Turns, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    met(turns, error)
    assert not turns.well
    (line,) = caplog.records
    assert line.levelno == (logging.WARNING if error in OUTAGES else logging.ERROR)
    assert f"broken why={type(error).__name__}" in line.message
    assert str(error) not in line.message or not str(error)


def test_trouble_is_told_once_until_it_is_over_or_another(
    turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    gone, _, _, silent = OUTAGES
    fault, other = FAULTS
    met(turns, gone, silent, gone, fault, fault, other, gone, None)
    assert turns.well
    met(turns, gone)
    assert [line.levelname for line in caplog.records] == [
        "WARNING", "ERROR", "ERROR", "WARNING", "WARNING"
    ]  # fmt: skip


def test_a_loop_that_is_cancelled_ends(turns: Turns) -> None:
    with pytest.raises(asyncio.CancelledError):
        met(turns, asyncio.CancelledError())
