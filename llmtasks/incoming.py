"""What somebody gave us to read becomes a document that can be stored, or one typed error."""

from __future__ import annotations

from dataclasses import dataclass

from llmtasks.documents import Text
from llmtasks.documents.formats import Format
from llmtasks.store import documents
from llmtasks.store.documents import NewDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDocument(NewDocument):
    """A document to store, and what its file was: `encoding` of a text file."""

    format: Format
    encoding: str | None


def document(
    read: Text, *, document_id: str | None, tenant: str, path: str | None = None
) -> FileDocument:
    """A document of this text, checked. Without an id it is named by a digest of its text.

    Raises:
        InvalidDocument: it cannot be stored; names its id.
    """
    made = FileDocument(
        document_id=f"doc-{read.content_hash[:16]}" if document_id is None else document_id,
        text=read.text,
        content_hash=read.content_hash,
        tenant=tenant,
        path=path,
        format=read.format,
        encoding=read.encoding,
    )
    documents.check(made)
    return made
