"""`submit --ids-from`: a line is an id, whatever wrote the file."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.cli.submit import _lines
from llmtasks.errors import UsageError

IDS = st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), max_size=20)


@given(ids=IDS, mark=st.sampled_from([b"", b"\xef\xbb\xbf"]), end=st.sampled_from(["\n", "\r\n"]))
def test_every_line_is_an_id_in_its_order_and_blank_ones_are_none(ids, mark, end):
    data = mark + (end + f" {end}").join(ids).encode()
    assert list(_lines(io.BytesIO(data))) == ids


def test_an_id_that_is_there_twice_is_two_jobs():
    assert list(_lines(io.BytesIO(b"a\nb\na\n"))) == ["a", "b", "a"]


@pytest.mark.parametrize(("data", "line"), [(b"a\n\nb\xff\n", 3), ("a\nb".encode("utf-16"), 1)])
def test_a_line_that_is_no_utf8_is_named(data, line):
    with pytest.raises(UsageError, match=f"line {line} is not UTF-8"):
        list(_lines(io.BytesIO(data)))
