"""Documents in both databases."""

from __future__ import annotations

from itertools import chain

import pytest
from support.rows import at_once, new_document

from llmtasks.errors import DocumentNotFound, InvalidDocument
from llmtasks.store import documents


def test_a_document_is_added_once_and_updated_by_another_text(db):
    assert documents.add(db, [new_document(text="one")]) == ["added"]
    assert documents.add(db, [new_document(text="one")]) == ["exists"]
    assert documents.add(db, [new_document(text="two")]) == ["updated"]
    assert documents.load(db, "default", "doc").text == "two"
    assert documents.load(db, "default", "doc", "hash of one").text == "one"


def test_statuses_come_in_the_order_given_also_for_an_id_given_twice(db):
    new = [
        new_document("b", "x"),
        new_document("a", "y"),
        new_document("b", "z"),
        new_document("b", "z"),
    ]
    assert documents.add(db, new) == ["added", "added", "updated", "exists"]
    assert documents.load(db, "default", "b").text == "z"


def test_two_documents_may_have_one_text(db):
    assert documents.add(db, [new_document("a"), new_document("b")]) == ["added", "added"]
    assert documents.load(db, "default", "a").text == documents.load(db, "default", "b").text


def test_tenants_do_not_see_each_others_documents(db):
    documents.add(db, [new_document(text="mine", tenant="a")])
    with pytest.raises(DocumentNotFound):
        documents.load(db, "b", "doc")
    with pytest.raises(DocumentNotFound):
        documents.load(db, "b", "doc", "hash of mine")
    assert documents.add(db, [new_document(text="other", tenant="b")]) == ["added"]
    assert documents.load(db, "a", "doc").text == "mine"
    assert list(documents.all_ids(db, "b")) == ["doc"]


def test_a_text_comes_back_to_the_letter(db):
    text = "é\r\n\t 漢字 🙂 \u202e \x01 \uffff '); DROP TABLE jobs; -- %s :x \\"
    documents.add(db, [new_document(text=text, content_hash="h")])
    assert documents.load(db, "default", "doc").text == text


@pytest.mark.parametrize("text", ["", "  \n\u00a0\t", "a\x00b", "a\ud800b"], ids=ascii)
def test_what_is_blank_or_no_text_is_refused_by_its_id_and_nothing_is_stored(db, text):
    with pytest.raises(InvalidDocument, match="'bad'") as refused:
        documents.add(db, [new_document("fine"), new_document("bad", text)])
    assert list(documents.all_ids(db, "default")) == []
    if text.strip():
        assert text not in str(refused.value)


@pytest.mark.parametrize("bad", ["", "x" * 513, "a\x00b", "a\ud800b"], ids=ascii)
def test_an_id_no_key_can_hold_is_refused(db, bad):
    with pytest.raises(InvalidDocument, match="document id"):
        documents.add(db, [new_document(bad)])
    with pytest.raises(DocumentNotFound):
        documents.load(db, "default", bad)


def test_the_longest_id_and_tenant_of_the_widest_characters_are_stored(db):
    document = new_document("🙂" * 512, tenant="🙂" * 128)
    assert documents.add(db, [document]) == ["added"]
    assert list(documents.all_ids(db, document.tenant)) == [document.document_id]


def test_a_missing_document_is_named(db):
    with pytest.raises(DocumentNotFound, match="'nothing'"):
        documents.load(db, "default", "nothing")
    documents.add(db, [new_document()])
    with pytest.raises(DocumentNotFound):
        documents.load(db, "default", "doc", "another hash")


def test_unknown_ids_are_found_in_their_order(db):
    documents.add(db, [new_document("a"), new_document("b")])
    asked = ["z", "a", "y", "b", "a\x00", "z"]
    assert documents.unknown(db, "default", asked) == ["z", "y", "a\x00"]
    assert documents.unknown(db, "default", []) == []


def test_pages_and_chunks_lose_nothing(db, monkeypatch):
    monkeypatch.setattr(documents, "PAGE", 3)
    monkeypatch.setattr(documents, "CHUNK", 4)
    monkeypatch.setattr(documents, "CHUNK_CHARACTERS", 20)
    ids = [f"doc-{n:02}" for n in range(11)]
    new = [new_document(one, f"text of {one}") for one in ids]
    assert documents.add(db, new) == ["added"] * 11
    assert sorted(documents.all_ids(db, "default")) == ids
    assert documents.unknown(db, "default", [*ids, "no"]) == ["no"]
    assert documents.add(db, new) == ["exists"] * 11


def test_the_same_documents_added_from_several_sides_at_once_are_added_once(db):
    new = [new_document(f"doc-{n}", f"text {n}") for n in range(50)]
    orders = [new, new[::-1], new[25:] + new[:25], new]
    answers = at_once([lambda order=order: documents.add(db, order) for order in orders])
    assert sorted(chain(*answers)) == ["added"] * 50 + ["exists"] * 150
