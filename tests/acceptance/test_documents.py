"""`llmtasks documents add` over the files that people have."""

from __future__ import annotations

import json
import subprocess
import sys

from support import nasty
from support.nasty import ADDED, LEFT_OUT, REFUSED
from support.processes import commands_in, converters_in
from support.stack import PATIENCE_S, eventually

from llmtasks.store import documents


def test_of_a_nasty_folder_each_file_gets_what_it_deserves_and_nothing_ends_the_rest(make_stack):
    stack = make_stack(providers=[], settings={"documents": {"max_bytes": nasty.MAX_BYTES}})
    folder = stack.home / "folder"
    folder.mkdir()
    expected = nasty.build(folder)
    done = stack.cli("documents", "add", "--json", str(folder), code=1)
    lines = json.loads(done.stdout)

    unnamed = [line for line in lines if line["document_id"] is None]
    assert len(unnamed) == 1
    assert "not UTF-8" in unnamed[0]["error"]
    by_id = {line["document_id"]: line for line in lines if line not in unnamed}
    assert by_id.keys() == {name for name, fate in expected.items() if fate.outcome != LEFT_OUT}
    assert len(by_id) == len(lines) - 1
    for name, line in by_id.items():
        fate = expected[name]
        assert line["status"] == fate.outcome, line
        if fate.outcome == REFUSED:
            assert line["error"].startswith(f"{folder}/{name}: "), line
            assert fate.says in line["error"], line
        else:
            text = documents.load(stack.database, "default", name).text
            assert fate.says in text, (name, text)
            assert fate.never not in text, (name, text)
    assert set(done.stderr.strip().removeprefix("left out: ").split(", ")) == {
        "2 hidden",
        "2 without suffix",
        "1 linked folder",
        "1 .xlsx",
    }

    again = stack.cli("documents", "add", str(folder), code=1)
    printed = again.stdout.splitlines()
    assert len(printed) == len(lines)
    assert sum(line.startswith("exists ") for line in printed) == sum(
        fate.outcome == ADDED for fate in expected.values()
    )


def test_names_patterns_and_standard_input_are_read_by_their_content(make_stack):
    stack = make_stack(providers=[])
    (stack.home / "a").mkdir()
    (stack.home / "b").mkdir()
    for name in ("a/x.txt", "b/x.txt", "a/[1].log"):
        (stack.home / name).write_text(f"The text of {name}.")
    (stack.home / "a/unnamed").write_bytes(nasty.epub(nasty.BOOK))

    def added(*argv, code=0):
        return [
            (line["document_id"], line["status"])
            for line in stack.json("documents", "add", *argv, code=code, inside=True)
        ]

    assert added("*/x.txt") == [("a/x.txt", "added"), ("b/x.txt", "added")]
    assert added("a", "b", code=1) == [("x.txt", "added"), ("x.txt", "error")]
    assert added("a/unnamed", "./a/[1].log") == [("a/unnamed", "added"), ("a/[1].log", "added")]
    assert added("a/x.txt", "--id", "mine") == [("mine", "added")]
    assert added("nothing", "no*", code=1) == [("nothing", "error"), (None, "error")]
    several = stack.inside("documents", "add", "a", "b", "--id", "m", code=2)
    assert "more than one" in several.stderr

    empty = stack.home / "empty"
    empty.mkdir()
    assert "nothing found" in stack.inside("documents", "add", str(empty), code=2).stderr

    piped = subprocess.run(
        [sys.executable, "-m", "llmtasks", "documents", "add", "-", "--json"],
        input=nasty.pdf(["From a pipe."]),
        env=stack.env,
        cwd=stack.home,
        capture_output=True,
        timeout=PATIENCE_S,
        check=True,
    )
    (line,) = json.loads(piped.stdout)
    assert (line["status"], line["format"]) == ("added", "pdf")
    assert line["document_id"].startswith("doc-")
    found = documents.load(stack.database, "default", line["document_id"])
    assert found.text == "From a pipe."
    assert line["document_id"] == f"doc-{found.content_hash[:16]}"


def test_a_folder_of_converted_files_comes_in_order_and_leaves_no_process(make_stack):
    stack = make_stack(providers=[])
    folder = stack.home / "pdfs"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}.pdf").write_bytes(nasty.pdf([f"Page of {number}."]))
        (folder / f"{number:02}.txt").write_text(f"Text of {number}.")
    argv = [sys.executable, "-m", "llmtasks", "documents", "add", "--json", str(folder)]
    adding = stack.start(argv, "add")
    seen = eventually(lambda: converters_in(stack.home) or not adding.running, "it converts")
    assert seen is not True, "it ended without a converter"
    assert adding.wait() == 0
    assert commands_in(stack.home) == {}
    lines = json.loads(adding.output())
    assert [line["document_id"] for line in lines] == sorted(file.name for file in folder.iterdir())
    assert {line["status"] for line in lines} == {ADDED}
    assert documents.load(stack.database, "default", "37.pdf").text == "Page of 37."
