"""The live screen and the plain lines, as they come out at a given width."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llmtasks.cli.pace import Observation, Pace
from llmtasks.cli.progress import Sight, frame, line
from llmtasks.store.batches import BatchStatus


def status(**values):
    defaults = {
        "batch_id": "batch",
        "state": "running",
        "total": 10_000,
        "queued": 7_443,
        "running": 32,
        "waiting": 215,
        "completed": 2_300,
        "failed": 10,
        "cancelled": 0,
        "cached": 200,
        "input_tokens": 1_234_567,
        "output_tokens": 234_567,
        "cost_usd": 12.345,
        "taken_over": 0,
        "reasons": {"openai: RateLimitError": 203, "[bold]spare[/] is out": 12},
    }
    return BatchStatus(**(defaults | values))


def sight(**values):
    pace = Pace()
    for second in range(40):
        pace = pace.after(
            Observation(
                at=float(second), total=10_000, ended=1_530 + 20 * second, worked=9, running=32
            )
        )
    defaults = {
        "status": status(),
        "pace": pace,
        "elapsed_s": 455.0,
        "next_try_s": 14.2,
        "unserved": ("llm.summarize",),
        "outage": "",
    }
    return Sight(**(defaults | values))


def drawn(one, width):
    """The screen's lines, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, markup=False, highlight=False).print(frame(one))
    return out.getvalue().rstrip("\n").split("\n")


def test_a_terminal_of_eighty_columns_shows_it_all():
    lines = [text.rstrip() for text in drawn(sight(), 80)]
    assert set(lines[0]) <= set("━╸╺ ")
    assert lines[1:] == [
        "done   2,310 of 10,000 (23 %)",
        "jobs   10 failed, 200 from the store, 32 running, 215 waiting, 7,443 queued",
        "spent  1,234,567 tokens in, 234,567 out, cost $12.35",
        "time   7 min 35 s elapsed, 1,200 jobs/min, about 6 min 24 s left",
        "203 wait: openai asked for a pause (429); 12 wait: [bold]spare[/] is out, next",
        "try in 14 s",
        "no worker serves llm.summarize: start one with: llmtasks worker",
    ]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(width):
    lines = drawn(sight(outage="connection refused"), width)
    assert max(map(len, lines)) <= width
    words = " ".join(" ".join(lines[1:]).split())
    for word in ("10,000", "7,443", "1,234,567", "$12.35", "elapsed", "(429);", "refused"):
        assert word in words


def test_a_cost_nobody_knows_is_not_free():
    assert "cost unknown" in line(sight(status=status(cost_usd=None)))


def test_what_is_not_known_yet_is_said_to_be():
    assert "time left unknown" in line(sight(pace=Pace()))
    assert "jobs/min" not in line(sight(pace=Pace()))


def test_many_reasons_are_cut_to_the_most_frequent():
    reasons = {f"reason {n}": n for n in range(1, 8)}
    text = line(sight(status=status(waiting=28, reasons=reasons)))
    assert "7 wait: reason 7; 6 wait: reason 6; 5 wait: reason 5; 10 more for 4 other" in text


@given(st.text(max_size=60))
def test_no_foreign_text_reaches_the_terminal_as_a_command(text):
    one = sight(status=status(reasons={text: 3}), outage=text)
    assert line(one).isprintable()
    assert "\x1b" not in "".join(drawn(one, 40))
    assert "".join(drawn(one, 40)).isprintable()
