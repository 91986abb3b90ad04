"""Documents and their texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from llmtasks.errors import DocumentNotFound, InvalidDocument
from llmtasks.store import dialect
from llmtasks.store.engine import Database, epoch
from llmtasks.store.names import MAX_DOCUMENT_ID, MAX_TENANT, is_key, is_storable
from llmtasks.store.tables import contents, documents

#: Documents of one transaction, in number and in characters of text.
CHUNK = 500
CHUNK_CHARACTERS = 8_000_000
#: Ids asked for, or listed, by one statement.
PAGE = 1_000

Status = Literal["added", "exists", "updated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text and its hash. A stored one is that of the hash it was asked for by, or its newest."""

    document_id: str
    tenant: str
    content_hash: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDocument(Document):
    """A document to store; `path` is where it came from."""

    tenant: str = "default"
    path: str | None = None


def add(db: Database, new: Sequence[NewDocument]) -> list[Status]:
    """Store documents; one status each, in their order.

    All are checked before the first is stored. Each chunk is a transaction of its own: after a
    StoreUnavailable add them again, what is there `exists`.

    Raises:
        InvalidDocument: a text is blank or cannot be stored, or an id cannot; names the id.
    """
    for document in new:
        check(document)
    statuses: list[Status] = []
    for chunk in _chunks(new):
        with db.write() as connection:
            statuses.extend(_add(connection, chunk))
    return statuses


#: Made once, because every job loads a text: the newest of a document, and one that is pinned.
_TEXT = sa.select(contents.c.content_hash, contents.c.text)
_NEWEST = _TEXT.join_from(documents, contents).where(
    documents.c.tenant == sa.bindparam("of_tenant"),
    documents.c.document_id == sa.bindparam("of_document"),
)
_PINNED = _TEXT.where(
    contents.c.tenant == sa.bindparam("of_tenant"),
    contents.c.content_hash == sa.bindparam("of_hash"),
)


def load(db: Database, tenant: str, document_id: str, content_hash: str | None = None) -> Document:
    """The text a job is about: that of `content_hash` when it is pinned, else the newest.

    Raises:
        DocumentNotFound: names the id.
    """
    if content_hash is None:
        query, of = _NEWEST, {"of_tenant": tenant, "of_document": document_id}
    else:
        query, of = _PINNED, {"of_tenant": tenant, "of_hash": content_hash}
    row = None
    if is_storable(tenant + document_id):
        with db.read() as connection:
            row = connection.execute(query, of).one_or_none()
    if row is None:
        raise DocumentNotFound(f"there is no document {document_id!r}")
    return Document(
        document_id=document_id, tenant=tenant, content_hash=row.content_hash, text=row.text
    )


def unknown(db: Database, tenant: str, ids: Iterable[str]) -> list[str]:
    """Those of the ids that no document has, in their order."""
    asked = list(dict.fromkeys(ids))
    known: set[str] = set()
    with db.read() as connection:
        for start in range(0, len(asked), PAGE):
            page = [one for one in asked[start : start + PAGE] if is_storable(one)]
            known.update(hashes(connection, tenant, page))
    return [one for one in asked if one not in known]


def all_ids(db: Database, tenant: str) -> Iterator[str]:
    """Every document's id, in the order of the ids. Pages are read as they are needed."""
    after = ""
    while True:
        page = ids_after(db, tenant, after, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1]


def ids_after(db: Database, tenant: str, after: str, limit: int) -> list[str]:
    """The next ids behind this one, in their order."""
    if not is_storable(after):
        return []
    query = (
        sa.select(documents.c.document_id)
        .where(documents.c.tenant == tenant, documents.c.document_id > after)
        .order_by(documents.c.document_id)
        .limit(limit)
    )
    with db.read() as connection:
        return list(connection.execute(query).scalars())


def hashes(connection: Connection, tenant: str, ids: Sequence[str]) -> dict[str, str]:
    """The newest content hash of each of these documents that exists. At most PAGE ids at once."""
    if not ids:
        return {}
    rows = connection.execute(
        sa.select(documents.c.document_id, documents.c.content_hash).where(
            documents.c.tenant == tenant, documents.c.document_id.in_(ids)
        )
    )
    return {row.document_id: row.content_hash for row in rows}


def check(document: NewDocument) -> None:
    """Refuse what cannot be stored.

    Raises:
        InvalidDocument: names the id.
    """
    name = ascii(document.document_id)
    if not is_key(document.document_id, MAX_DOCUMENT_ID):
        raise InvalidDocument(
            f"document id {name[:80]}: must have 1 to {MAX_DOCUMENT_ID} characters,"
            " without NUL and lone surrogates"
        )
    if not is_key(document.tenant, MAX_TENANT):
        raise InvalidDocument(
            f"document {name}: the tenant must have 1 to {MAX_TENANT} characters,"
            " without NUL and lone surrogates"
        )
    if not document.text or document.text.isspace():
        raise InvalidDocument(f"document {name}: is blank")
    if not is_storable(document.text):
        raise InvalidDocument(f"document {name}: holds NUL or a lone surrogate, so is no text")
    if document.path is not None and not is_storable(document.path):
        raise InvalidDocument(f"document {name}: its path holds NUL or a lone surrogate")


def _chunks(new: Sequence[NewDocument]) -> Iterator[list[NewDocument]]:
    """In order; no id twice in a chunk, so that a later text of the same id is an update."""
    chunk: list[NewDocument] = []
    seen: set[tuple[str, str]] = set()
    characters = 0
    for document in new:
        key = (document.tenant, document.document_id)
        if chunk and (
            len(chunk) == CHUNK or key in seen or characters + len(document.text) > CHUNK_CHARACTERS
        ):
            yield chunk
            chunk, seen, characters = [], set(), 0
        chunk.append(document)
        seen.add(key)
        characters += len(document.text)
    if chunk:
        yield chunk


def _add(connection: Connection, chunk: Sequence[NewDocument]) -> list[Status]:
    # In the order of the keys, texts first: of two that add the same, none waits for the other's
    # second.
    now = connection.execute(sa.select(epoch())).scalar_one()
    texts = {(d.tenant, d.content_hash): d.text for d in chunk}
    connection.execute(
        _taken_up(connection),
        [
            {"tenant": tenant, "content_hash": digest, "text": text, "size": len(text.encode())}
            for (tenant, digest), text in sorted(texts.items())
        ],
    )
    ordered = sorted(chunk, key=lambda d: (d.tenant, d.document_id))
    added = {
        (row.tenant, row.document_id)
        for row in connection.execute(
            dialect.insert(connection, documents)
            .on_conflict_do_nothing()
            .returning(documents.c.tenant, documents.c.document_id),
            [
                {
                    "tenant": d.tenant,
                    "document_id": d.document_id,
                    "content_hash": d.content_hash,
                    "path": d.path,
                    "created_at": now,
                    "updated_at": now,
                }
                for d in ordered
            ],
        )
    }
    updated = _update(
        connection, [d for d in ordered if (d.tenant, d.document_id) not in added], now
    )
    return [_status((d.tenant, d.document_id), added, updated) for d in chunk]


def _update(
    connection: Connection, there: Sequence[NewDocument], now: float
) -> set[tuple[str, str]]:
    """Give the documents that are there already their new text, where it is another one."""
    stored: dict[tuple[str, str], str] = {}
    for tenant in {d.tenant for d in there}:
        ids = [d.document_id for d in there if d.tenant == tenant]
        stored |= {(tenant, key): h for key, h in hashes(connection, tenant, ids).items()}
    changed = [d for d in there if stored.get((d.tenant, d.document_id)) != d.content_hash]
    updated = set()
    for d in changed:
        moved = connection.execute(
            sa.update(documents)
            .where(
                documents.c.tenant == d.tenant,
                documents.c.document_id == d.document_id,
                documents.c.content_hash != d.content_hash,
            )
            .values(content_hash=d.content_hash, path=d.path, updated_at=now)
        )
        if moved.rowcount:
            updated.add((d.tenant, d.document_id))
    mark_replaced(connection, [(key[0], stored[key]) for key in updated if key in stored])
    return updated


def mark_replaced(connection: Connection, texts: Iterable[tuple[str, str]]) -> None:
    """Say of texts, by tenant and hash, that a document has given them up.

    Others may still have them: whoever removes what was replaced asks that. A text that somebody holds is
    about to be used, or marked.
    """
    for tenant, content_hash in sorted(set(texts)):
        row = sa.and_(contents.c.tenant == tenant, contents.c.content_hash == content_hash)
        free = sa.select(contents.c.content_hash).where(row).with_for_update(skip_locked=True)
        if connection.execute(free).first() is not None:
            connection.execute(sa.update(contents).where(row).values(replaced_at=epoch()))


def _taken_up(connection: Connection) -> dialect.Insert:
    """Store a text. One that is there is held until the end, so that nobody removes it meanwhile."""
    return dialect.insert(connection, contents).on_conflict_do_update(
        index_elements=[contents.c.tenant, contents.c.content_hash],
        set_={"replaced_at": None},
        where=contents.c.replaced_at.is_not(None),
    )


def _status(
    key: tuple[str, str], added: set[tuple[str, str]], updated: set[tuple[str, str]]
) -> Status:
    if key in added:
        return "added"
    return "updated" if key in updated else "exists"
