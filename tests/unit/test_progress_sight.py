"""Whatever happens to a stream of pieces: what a reader shows is a beginning of the answer, or void."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmtasks.progress import Ended, Entry, Piece, Reset, Sight, resumed, seen
from llmtasks.progress.sight import Kind, order

#: Answers of claims, each begun once or more, each in pieces.
CLAIMS = st.lists(
    st.lists(st.lists(st.text(min_size=1, max_size=4), max_size=5), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


def written(claims: list[list[list[str]]]) -> list[tuple[Entry, str]]:
    """The entries, each with the whole answer that it belongs to."""
    found: list[tuple[Entry, str]] = []
    for fence, answers in enumerate(claims, start=1):
        for pieces in answers:
            text = "".join(pieces)
            found.append((one(len(found), Kind.BEGIN, fence), text))
            offset = 0
            for piece in pieces:
                found.append((one(len(found), Kind.TEXT, fence, offset, piece), text))
                offset += len(piece)
    found.append((one(len(found), Kind.END, fence, offset), text))
    return found


def one(number: int, kind: Kind, fence: int, offset: int = 0, text: str = "") -> Entry:
    return Entry(id=f"1-{number}", kind=kind, fence=fence, offset=offset, text=text)


def shown(entries: list[Entry], sight: Sight | None = None, before: str = "") -> str:
    """What a client has on its screen at the end."""
    sight, screen = sight or Sight(), before
    for found in entries:
        sight, event = seen(sight, found)
        match event:
            case Piece(text):
                screen += text
            case Reset():
                screen = ""
    return screen


@given(CLAIMS)
def test_a_reader_who_misses_nothing_shows_the_last_answer(claims):
    entries = written(claims)
    assert shown([entry for entry, _ in entries]) == entries[-1][1]


@given(CLAIMS, st.sets(st.integers(0, 30)))
@example([[["0"]], [[]]], {2})
def test_with_pieces_missing_what_is_shown_is_a_beginning_of_that_answer(claims, missing):
    entries = written(claims)
    left = [pair for index, pair in enumerate(entries) if index not in missing]
    sight, screen = Sight(), ""
    for entry, answer in left:
        sight, event = seen(sight, entry)
        screen = screen + event.text if isinstance(event, Piece) else screen
        screen = "" if isinstance(event, Reset) else screen
        # The end of a later answer, whose beginning is missing, says that this was not all of it.
        assert answer.startswith(screen) or (sight.ended and sight.lost)
    assert not sight.whole or screen == answer, "a part is never the whole"


@given(CLAIMS, st.data())
def test_who_resumes_after_any_entry_shows_what_all_others_do(claims, data):
    entries = [entry for entry, _ in written(claims)]
    at = data.draw(st.integers(1, len(entries)))
    before, after = entries[:at], entries[at:]
    assert shown(after, resumed(before[-1]), shown(before)) == shown(entries)


@given(CLAIMS, CLAIMS)
def test_what_a_stopped_worker_still_writes_is_not_shown(claims, late):
    entries = [entry for entry, _ in written(claims)]
    newest = entries[-1].fence
    old = [entry for entry, _ in written(late) if entry.fence < newest]
    assert shown([*entries, *old]) == shown(entries)


@pytest.mark.parametrize(
    ("end", "whole"),
    [
        (one(9, Kind.END, 1, 4), True),
        (one(9, Kind.END, 1, 5), False),  # a piece before it could not be written
        (one(9, Kind.END, 2, 4), False),  # of a later claim, which was answered from what is stored
        (one(9, Kind.END, 2, 0), False),
    ],
)
def test_an_end_makes_whole_only_what_was_shown_to_the_last_letter(end, whole):
    sight, event = seen(Sight(fence=1, heard=4), end)
    assert event == Ended()
    assert sight.whole == whole


def test_the_end_of_an_older_claim_is_nobodys():
    sight = Sight(fence=3, heard=5)
    assert seen(sight, one(1, Kind.END, 2, 5)) == (sight, None)


@pytest.mark.parametrize(
    "wrong", ["", "x", "1", "1-", "-1", "1-2-3", "1.5-0", "٣-0", "1" * 21 + "-0"]
)
def test_what_is_no_id_of_an_entry_is_none(wrong):
    with pytest.raises(ValueError, match="no id"):
        order(wrong)


def test_entries_are_in_order_by_number_and_not_by_letter():
    assert order("9-0") < order("10-0") < order("10-2") < order("10-10")
