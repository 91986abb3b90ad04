"""A log line is one line, can be taken apart again, and quotes nobody."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks import logs

TEXT = "marmalade-lighthouse-4711"

KEYS = st.text("abcdefghij_", min_size=1, max_size=8)
VALUES = st.one_of(
    st.text(),
    st.text('\r\n\t "=\\\x1b\x85\u2028\u2029\ud800,{}äé'),
    st.integers(),
    st.booleans(),
    st.floats(),
    st.lists(st.text(), max_size=3),
)
FIELDS = st.dictionaries(KEYS, VALUES, max_size=5)

#: `key=value`, where a value is JSON's text or one word.
PAIR = re.compile(r' (\w+)=("(?:[^"\\]|\\.)*"|[^ "=]+)')


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(scope="module")
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("llmtasks.test")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    made.addHandler(Kept())
    yield made
    made.handlers = [one for one in made.handlers if not isinstance(one, Kept)]


def kept(logger: logging.Logger) -> logging.LogRecord:
    (handler,) = (one for one in logger.handlers if isinstance(one, Kept))  # pytest has one, too
    return handler.records.pop()


def record_of(logger: logging.Logger, /, **fields: object) -> logging.LogRecord:
    logs.info(logger, "something-happened", **fields)
    return kept(logger)


def as_text(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case float():
            return str(value)
        case list():
            return ",".join(value)
    return str(value)


def same(given_: object, read: str) -> bool:
    if isinstance(given_, float) and abs(given_) < float("inf"):
        return abs(float(read) - given_) <= 5e-4 * max(1.0, abs(given_))
    return read == as_text(given_)


@given(fields=FIELDS)
def test_any_field_is_part_of_one_line_of_text_that_can_be_read(logger, fields):
    line = logs.TextFormatter().format(record_of(logger, **fields))
    assert len(line.splitlines()) == 1
    assert all(char.isprintable() for char in line)
    head, _, rest = line.partition("something-happened")
    assert head.endswith(" INFO llmtasks.test ")
    assert PAIR.sub("", rest) == ""
    read = {
        key: json.loads(value) if value.startswith('"') else value
        for key, value in PAIR.findall(rest)
    }
    assert read.keys() == fields.keys()
    assert all(same(value, read[key]) for key, value in fields.items())


@given(fields=FIELDS)
def test_any_field_is_part_of_one_line_of_json_that_any_reader_takes(logger, fields):
    line = logs.JsonFormatter().format(record_of(logger, **fields))
    assert line.isascii()
    assert len(line.splitlines()) == 1

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    read = json.loads(line, parse_constant=refuse)
    assert read.pop("timestamp").endswith("Z")
    assert (read.pop("level"), read.pop("logger")) == ("info", "llmtasks.test")
    assert read.pop("event") == "something-happened"
    assert read.keys() == fields.keys()
    for key, value in fields.items():
        assert read[key] == value or same(value, str(read[key]))


def test_a_field_cannot_take_the_place_of_what_each_line_has(logger):
    record = record_of(logger, level="none", event="other", timestamp="never", job="j")
    read = json.loads(logs.JsonFormatter().format(record))
    assert (read["level"], read["event"], read["job"]) == ("info", "something-happened", "j")
    assert read["timestamp"] != "never"


def test_what_is_unknown_is_left_out_and_small_prices_are_not_nothing(logger):
    line = str(record_of(logger, cost_usd=0.000123, model=None, took=12.3456).msg)
    assert line == "something-happened cost_usd=0.000123 took=12.346"


@pytest.mark.parametrize(
    "style", [logs.TextFormatter(), logs.JsonFormatter()], ids=["text", "json"]
)
def test_what_others_say_is_one_line_without_what_their_exceptions_quote(style, logger):
    try:
        int(TEXT)
    except ValueError:
        logger.exception("It broke\nThe full contents of the message body was: %s", TEXT)
    broke = style.format(kept(logger))
    context = {"name": "a-task", "id": "job-1", "exc": TEXT, "description": "raised unexpected"}
    logger.error("Task %(name)s raised: %(exc)s", context, extra={"data": context})
    failed = style.format(kept(logger))
    for line in (broke, failed):
        assert len(line.splitlines()) == 1
        assert TEXT not in line
    assert "It broke" in broke
    assert "ValueError" in broke
    assert "test_log_lines.py" in broke
    assert "job-1" in failed
    assert "raised unexpected" in failed
