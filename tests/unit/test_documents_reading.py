"""Text, bytes and files are one document where they say the same, and are measured in bytes."""

from __future__ import annotations

import pytest

from llmtasks import client, settings
from llmtasks.documents import pool, read_one
from llmtasks.errors import InvalidDocument

#: Has more bytes in UTF-8 than characters, or bytes in an old encoding.
WIDE = "Le café crème coûte très cher à Besançon, où l'été est passé."
SIZE = len(WIDE.encode())


def forms(text, folder, encoding="utf-8"):
    """A text in every way it can be given."""
    path = folder / "file.txt"
    path.write_bytes(text.encode(encoding))
    return [text, text.encode(encoding), path]


def test_a_text_is_the_same_document_however_it_is_given(tmp_path):
    with pool(1) as converters:
        read = [read_one(one, 100, converters) for one in forms("A café.", tmp_path)]
        page = read_one(b"<!doctype html><p>A caf&eacute;.</p>", 100, converters)
    assert {one.text for one in [*read, page]} == {"A café."}
    assert len({one.content_hash for one in [*read, page]}) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_document_may_have_so_many_bytes_however_it_is_given(tmp_path, encoding):
    with pool(1) as converters:
        for one in forms(WIDE, tmp_path, encoding):
            with pytest.raises(InvalidDocument, match=f"is larger than {SIZE - 1} bytes"):
                read_one(one, SIZE - 1, converters)
            assert read_one(one, SIZE, converters).text == WIDE


def test_a_text_that_no_encoding_allows_is_refused():
    with pool(1) as converters, pytest.raises(InvalidDocument, match="lone surrogates"):
        read_one("a\ud800b", 100, converters)


def test_what_is_added_is_measured_like_that_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMTASKS_DOCUMENTS__MAX_BYTES", str(SIZE - 1))
    settings.current.cache_clear()
    try:
        for one, name in zip(forms(WIDE, tmp_path), ["mine", "mine", "file.txt"], strict=True):
            with pytest.raises(InvalidDocument, match=rf"{name}: is larger than {SIZE - 1} bytes"):
                client.add_document(one, "mine")
    finally:
        settings.current.cache_clear()
