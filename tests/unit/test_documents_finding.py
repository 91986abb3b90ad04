"""From what a user names to files with ids."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtasks.documents import FileError, find, read_found
from llmtasks.documents.finding import _matches


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.md", "sub/c.txt", "sub/low/d.pdf", "other/c.txt", "x.log", ".h.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Text of {name}.")
    return tmp_path


def ids(*paths):
    return [
        f"! {one.path}" if isinstance(one, FileError) else one.document_id for one in find(paths)
    ]


@contextlib.contextmanager
def without_privileges():
    """As a user who may not read everything: root may."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folders_files_are_named_inside_it_and_others_as_given(folder):
    assert ids(".") == ["a.md", "b.txt", "other/c.txt", "sub/c.txt", "sub/low/d.pdf"]
    assert ids("sub") == ["c.txt", "low/d.pdf"]
    assert ids(f"{folder}/sub/") == ["c.txt", "low/d.pdf"]
    assert ids("x.log", "./sub//c.txt", ".h.txt") == ["x.log", "sub/c.txt", ".h.txt"]
    assert ids(f"{folder}/x.log") == [f"{folder}/x.log"]


def test_two_files_of_one_id_are_an_error_that_names_both_and_one_file_twice_is_none(folder):
    first, second = (one for one in find(["sub", "other"]) if one.document_id == "c.txt")
    assert first.path == "sub/c.txt"
    assert isinstance(second, FileError)
    assert "sub/c.txt" in second.message
    assert "other/c.txt" in second.message
    assert ids("b.txt", "./b.txt", "*.txt") == ["b.txt"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["b.txt"]),
        ("*", ["a.md", "b.txt", "x.log"]),
        ("**/*.txt", ["b.txt", "other/c.txt", "sub/c.txt"]),
        ("**", ["a.md", "b.txt", "x.log", "other/c.txt", "sub/c.txt", "sub/low/d.pdf"]),
        ("*/*.txt", ["other/c.txt", "sub/c.txt"]),
        ("sub/**/*.p?f", ["sub/low/d.pdf"]),
        ("[ab].*", ["a.md", "b.txt"]),
        ("s*/low/*", ["sub/low/d.pdf"]),
        ("*.none", ["! *.none"]),
        ("none/*", ["! none", "! none/*"]),
    ],
)
def test_a_pattern_the_shell_left_alone_matches_as_the_shell_would(folder, pattern, expected):
    assert ids(pattern) == expected


@given(st.lists(st.sampled_from("ab"), min_size=1, max_size=6))
def test_two_stars_match_any_number_of_folders(parts):
    assert _matches(parts, ["**"])
    assert _matches(parts, ["**", "*"])
    assert _matches(parts, ["*"] * len(parts))
    assert _matches(parts, ["**", *parts])
    assert not _matches(parts, ["*"] * (len(parts) + 1))
    assert not _matches(parts, ["**", "c"])


def test_what_is_left_out_is_counted(folder):
    (folder / "sub/loop").symlink_to("..", target_is_directory=True)
    left_out = Counter()
    found = list(find(["."], left_out))
    assert len(found) == 5
    assert {key: count for key, count in left_out.items() if count} == {
        ".log": 1,
        "hidden": 1,
        "linked folder": 1,
    }


@contextlib.contextmanager
def a_small_stack():
    """Room for a hundred calls more than there are."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_deeper_than_the_stack_is_searched_to_the_bottom(folder):
    bottom = folder
    for _ in range(300):  # no deeper: pytest removes it by calling itself
        bottom /= "d"
        bottom.mkdir()
    (bottom / "last.txt").write_text("Here.")
    with a_small_stack():
        found = ids("d")
    assert found == ["d/" * 299 + "last.txt"]


def test_without_permission_a_file_or_folder_is_one_error_and_the_rest_is_read(folder):
    (folder / "b.txt").chmod(0)
    (folder / "sub/low").chmod(0)
    folder.chmod(0o755)
    try:
        with without_privileges():
            got = list(read_found(find(["."]), 1000))
    finally:
        (folder / "sub/low").chmod(0o755)
    errors = {one.path: one.message for one in got if isinstance(one, FileError)}
    assert errors.keys() == {"./b.txt", "./sub/low"}
    assert all("Permission denied" in message for message in errors.values())
    assert [one[0].document_id for one in got if not isinstance(one, FileError)] == [
        "a.md",
        "other/c.txt",
        "sub/c.txt",
    ]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nothing", "no such file"),
        ("b.txt/c", "Not a directory"),
        ("", "empty path"),
        ("a\0b", "NUL"),
        ("/dev/null", "a device"),
        ("n" * 300, "too long"),
    ],
)
def test_a_path_that_is_no_file_is_one_error(folder, path, said):
    (error,) = read_found(find([path]), 1000)
    assert isinstance(error, FileError)
    assert said in error.message
