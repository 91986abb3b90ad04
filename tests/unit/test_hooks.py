"""The user's own functions: what is accepted when they are loaded, and what becomes of what they do."""

from __future__ import annotations

import sys

import pytest

from llmtasks import hooks
from llmtasks.errors import (
    ConfigurationError,
    DocumentNotFound,
    DocumentSourceFailed,
    InvalidDocument,
    NotNow,
)
from llmtasks.settings import Documents, Results, Settings
from workers.deliveries import FIRST_DELAY_S, LAST_DELAY_S, delay

FUNCTIONS = """
import asyncio, concurrent.futures, functools
from llmtasks.errors import InvalidDocument, NotNow, StoreUnavailable

def with_tenant(document_id, *, tenant): return f"{document_id} of {tenant}"
def positional(document_id, tenant): return f"{document_id} of {tenant}"
def whatever(*args, **kwargs): return f"{args} {kwargs}"
def plain(document_id): return b"bytes of " + document_id.encode()
class Store:
    def __call__(self, document_id): return "from an object"
    async def later(self, document_id): ...
store = Store()
bound = store.__call__
partial = functools.partial(with_tenant, tenant="fixed")
def missing(document_id): return None
def number(document_id): return 7
def broken(document_id): raise KeyError("a secret of the document")
def leaving(document_id): raise SystemExit("a secret of the document")
def cancelled(document_id): raise asyncio.CancelledError("a secret of the document")
def given_up(document_id): raise concurrent.futures.CancelledError("a secret of the document")
def typed(document_id): raise InvalidDocument("typed")
def later(document_id): raise NotNow("later", delay=3.0)
def outage(document_id): raise StoreUnavailable("down")

def three(a, b, c): ...
def nothing(): ...
def other_keyword(document_id, *, customer): ...
async def coroutine(document_id): ...
async def agen(document_id): yield ""
def gen(document_id): yield ""
class AsyncStore:
    async def __call__(self, document_id): ...
async_store = AsyncStore()
async_partial = functools.partial(coroutine)
constant = "no function"

rows = []
def sink(row): rows.append(row)
def sink_of_two(row, table): ...
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A module of the user's in a folder that is not on the path; how to load from it."""
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('a secret')")
    (tmp_path / "needs_more.py").write_text("import surely_not_installed")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(*, source=None, sink=None):
        settings = Settings(documents=Documents(source=source), results=Results(sink=sink))
        return hooks.load(settings, tmp_path)

    yield load
    for name in ("mine", "broken_module", "needs_more"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("function", "gives"),
    [
        ("with_tenant", "d of t"),
        ("positional", "d of t"),
        ("whatever", "('d',) {'tenant': 't'}"),
        ("plain", b"bytes of d"),
        ("store", "from an object"),
        ("bound", "from an object"),
        ("partial", "d of t"),
    ],
)
def test_a_source_takes_the_id_and_the_tenant_if_it_wants(beside, function, gives):
    assert beside(source=f"mine:{function}").source("d", "t") == gives


def test_nothing_named_is_nothing_loaded(beside):
    assert beside() == hooks.Hooks()


def test_a_sink_gets_the_row(beside):
    beside(sink="mine:sink").sink({"job_id": "j"})
    assert sys.modules["mine"].rows == [{"job_id": "j"}]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("mine:three", "must take (document_id)"),
        ("mine:nothing", "must take (document_id)"),
        ("mine:other_keyword", "must take (document_id)"),
        ("mine:coroutine", "is async"),
        ("mine:async_store", "is async"),
        ("mine:async_partial", "is async"),
        ("mine:agen", "is an async generator"),
        ("mine:gen", "is a generator"),
        ("mine:constant", "is a str, not a function"),
        ("mine:Store", "is a class, not a function"),
        ("mine:absent", "has no absent"),
        ("nowhere:f", "there is no module nowhere; put it beside llmtasks.toml"),
        ("mine.deeper:f", "there is no module mine.deeper"),
        ("needs_more:f", "it needs the module surely_not_installed"),
        ("broken_module:f", "importing broken_module failed: RuntimeError at broken_module.py:1"),
    ],
)
def test_what_cannot_work_is_one_line_at_the_start(beside, source, says):
    with pytest.raises(ConfigurationError) as caught:
        beside(source=source)
    line = str(caught.value)
    assert line.startswith(f"documents.source: {source}: ")
    assert says in line
    assert "\n" not in line
    assert "secret" not in line


def test_a_wrong_sink_is_named_by_its_key(beside):
    with pytest.raises(ConfigurationError, match=r"results\.sink: mine:sink_of_two: must take"):
        beside(sink="mine:sink_of_two")


@pytest.mark.parametrize(
    ("function", "error", "says"),
    [
        ("missing", DocumentNotFound, "there is no document 'd'"),
        ("number", DocumentSourceFailed, "mine:number returned int, not str, bytes or None"),
        ("broken", DocumentSourceFailed, "mine:broken raised KeyError"),
        ("leaving", DocumentSourceFailed, "mine:leaving raised SystemExit"),
        ("cancelled", DocumentSourceFailed, "mine:cancelled raised CancelledError"),
        ("given_up", DocumentSourceFailed, "mine:given_up raised CancelledError"),
        ("outage", DocumentSourceFailed, "mine:outage raised StoreUnavailable"),
        ("typed", InvalidDocument, "typed"),
        ("later", NotNow, "later"),
    ],
)
def test_what_a_source_does_is_a_typed_error_without_its_words(beside, function, error, says):
    with pytest.raises(error) as caught:
        beside(source=f"mine:{function}").source("d", "t")
    assert type(caught.value) is error
    assert str(caught.value) == says


def test_a_folder_of_the_users_hides_no_installed_package(beside, tmp_path):
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "mine.py").write_text("def f(document_id): ...")
    with pytest.raises(ConfigurationError, match="there is no module"):
        beside(source="workers.mine:f")


def test_the_delays_of_a_refused_row_double_up_to_five_minutes():
    delays = [delay(tries) for tries in range(2_000)]
    assert delays[:4] == [FIRST_DELAY_S, 2.0, 4.0, 8.0]
    assert max(delays) == delays[-1] == LAST_DELAY_S
    assert delays == sorted(delays)
