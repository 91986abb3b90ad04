"""Conversions in child processes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.nasty import PAGE, docx, paragraph, pdf
from support.stack import eventually

from llmtasks.documents import FileError, find, read_found
from llmtasks.documents.pool import pool
from llmtasks.errors import InvalidDocument, NotNow

#: Takes far longer than any test waits.
SLOW = b"<table>" + b"<tr><td>a <b>b</b></td></tr>" * 200_000
LIMIT = 10_000_000


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(of):
    return {child._process.pid for child in of._children}


def test_one_process_converts_one_document_after_the_other():
    with pool(1) as converters:
        assert converters.convert("pdf", pdf(["One."]), LIMIT) == "One."
        first = children(converters)
        with pytest.raises(InvalidDocument, match="is broken"):
            converters.convert("pdf", b"%PDF-", LIMIT)
        assert converters.convert("html", PAGE.encode(), LIMIT).startswith("# The harbour")
        assert children(converters) == first
    assert not any(map(is_running, first))


def test_a_conversion_that_hangs_ends_and_the_next_one_works():
    with pool(1, deadline_s=1.0) as converters:
        with pytest.raises(InvalidDocument, match="within 1 s"):
            converters.convert("html", SLOW, LIMIT)
        assert converters.convert("pdf", pdf(["One."]), LIMIT) == "One."


def test_a_conversion_that_eats_memory_ends_and_the_next_one_works():
    with pool(1, memory_bytes=320 << 20) as converters:
        with pytest.raises(InvalidDocument, match="more than 320 MB"):
            converters.convert("html", SLOW, LIMIT)
        assert converters.convert("pdf", pdf(["One."]), LIMIT) == "One."


@pytest.mark.parametrize("sig", [signal.SIGSEGV, signal.SIGKILL])
def test_a_converter_that_crashes_is_the_error_of_its_document(sig):
    with pool(1) as converters:
        running = converters.submit(lambda: converters.convert("html", SLOW, LIMIT))
        (pid,) = eventually(lambda: children(converters), "a child runs")
        os.kill(pid, sig)
        with pytest.raises(InvalidDocument, match="converter"):
            running.result()
        assert converters.convert("pdf", pdf(["One."]), LIMIT) == "One."


def test_a_document_is_not_to_blame_for_the_death_of_an_idle_converter():
    with pool(1) as converters:
        converters.convert("pdf", pdf(["One."]), LIMIT)
        (pid,) = children(converters)
        os.kill(pid, signal.SIGKILL)
        assert converters.convert("pdf", pdf(["Two."]), LIMIT) == "Two."


def test_closing_ends_a_conversion_under_way():
    with pool(2) as converters:
        running = converters.submit(lambda: converters.convert("html", SLOW, LIMIT))
        pids = eventually(lambda: children(converters), "a child runs")
    assert isinstance(running.exception(), NotNow)  # the document is not to blame
    assert not any(map(is_running, pids))


def test_no_more_converters_run_than_there_are_cores_whoever_asks():
    with pool(1) as converters, ThreadPoolExecutor(4) as callers:
        texts = list(
            callers.map(lambda n: converters.convert("pdf", pdf([f"{n}."]), LIMIT), range(4))
        )
        assert texts == ["0.", "1.", "2.", "3."]
        assert len(children(converters)) == 1


@contextlib.contextmanager
def descriptors_left(count):
    """This process may open so many files more, and no process can be started: that takes five."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_converter_that_cannot_be_started_is_no_documents_fault_and_is_tried_again():
    with pool(1) as converters:
        with descriptors_left(1), pytest.raises(NotNow, match="Too many open files") as caught:
            converters.convert("pdf", pdf(["One."]), LIMIT)
        assert caught.value.delay > 0
        assert converters.convert("pdf", pdf(["One."]), LIMIT) == "One."


def test_a_file_whose_converter_cannot_be_started_is_one_error_and_the_rest_is_read(tmp_path):
    # The text comes first: some versions of Python keep the pipes of a process that they cannot start.
    (tmp_path / "a.txt").write_text("One.")
    (tmp_path / "b.pdf").write_bytes(pdf(["Two."]))
    found = list(find([str(tmp_path)]))
    with descriptors_left(2):  # enough to read a file, not to start a process
        (_, text), failed = read_found(found, LIMIT)
    assert isinstance(failed, FileError)
    assert failed.message == (
        f"{tmp_path}/b.pdf: was not converted: no process can be started for it (Too many open files)"
    )
    assert text.text == "One."


def test_a_converter_ends_with_its_parent_however_that_ends():
    program = """
        import time
        from llmtasks.documents.pool import pool
        with pool(1) as converters:
            slow = b"<table>" + b"<tr><td>a <b>b</b></td></tr>" * 200_000
            converters.submit(lambda: converters.convert("html", slow, 10**8))
            while not converters._children:
                time.sleep(0.01)
            (child,) = converters._children
            print(child._process.pid, flush=True)
            input()
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    eventually(lambda: not is_running(pid), "the converter has ended", 20)


def test_a_converter_gets_no_key_of_ours(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with pool(1) as converters:
        converters.convert("pdf", pdf(["One."]), LIMIT)
        (pid,) = children(converters)
        assert b"sk-secret" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_text_longer_than_a_document_may_be_is_refused():
    with pool(1) as converters, pytest.raises(InvalidDocument, match="documents"):
        converters.convert("pdf", pdf(["x" * 40, "y" * 40]), 50)
    with pool(1) as converters, pytest.raises(InvalidDocument, match="documents"):
        converters.convert("docx", docx(paragraph("é" * 600)), 1_100)


def test_without_the_libraries_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "pypdfium2.py").write_text("raise ModuleNotFoundError(name=__name__)")
    monkeypatch.syspath_prepend(tmp_path)
    with pool(1) as converters, pytest.raises(InvalidDocument, match=r"llmtasks\[documents\]"):
        converters.convert("pdf", pdf(["One."]), LIMIT)
