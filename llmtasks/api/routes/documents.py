"""Documents: add, list, read."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request

from llmtasks import client, incoming, watching
from llmtasks.api import schemas
from llmtasks.api.callers import TheCaller
from llmtasks.api.resources import Resources
from llmtasks.api.routes import NOT_FOUND, REFUSALS, TheResources
from llmtasks.documents import read_one
from llmtasks.errors import InvalidDocument
from llmtasks.incoming import FileDocument


class _Any(Convertor[str]):
    """The rest of a path, whatever is in it: an id may have slashes and line breaks."""

    regex = r"(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _Any())
router = APIRouter(tags=["documents"], responses=REFUSALS)

_UPLOAD = {
    "requestBody": {
        "required": True,
        "description": "The file itself: text, HTML, PDF, Word or EPUB.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.post("/documents", operation_id="addDocuments", summary="Store texts")
def add(
    new: schemas.NewDocuments, caller: TheCaller, resources: TheResources
) -> list[schemas.Added]:
    """One element for each, in their order. A text that cannot be stored is an `error` among them, and keeps
    no other from being stored. Another text under a known id replaces it for jobs submitted from then on.
    """
    read = [_tried(one, caller.tenant, resources) for one in new.documents]
    stored = iter(client.add_documents([one for one in read if isinstance(one, FileDocument)]))
    return [_added(one, next(stored)) if isinstance(one, FileDocument) else one for one in read]


def _tried(
    one: schemas.NewDocument, tenant: str, resources: Resources
) -> FileDocument | schemas.Added:
    try:
        return _read(one.text, one.id, tenant, resources)
    except InvalidDocument as error:
        return schemas.Added(document_id=one.id, status="error", error=str(error))


def _read(
    source: str | bytes, document_id: str | None, tenant: str, resources: Resources
) -> FileDocument:
    """The document in a text or a file. Its converters are the server's: no more than it has cores."""
    most = resources.settings.documents.max_bytes
    text = read_one(source, most, resources.converters)
    return incoming.document(text, document_id=document_id, tenant=tenant)


def _added(one: FileDocument, status: str) -> schemas.Added:
    return schemas.Added.model_validate({"document_id": one.document_id, "status": status})


@router.put(
    "/documents/{document_id:any}",
    operation_id="putDocument",
    summary="Store a file",
    openapi_extra=_UPLOAD,
)
async def put(
    document_id: schemas.DocumentId, request: Request, caller: TheCaller, resources: TheResources
) -> schemas.Added:
    """The body is the file; PDF, Word, EPUB and HTML become text."""
    body = await request.body()
    if not body:
        raise InvalidDocument(f"{document_id}: the body is empty; it has to be the file")

    def store() -> schemas.Added:
        try:
            read = _read(body, document_id, caller.tenant, resources)
        except InvalidDocument as error:
            raise InvalidDocument(f"{document_id}: {error}") from None
        (status,) = client.add_documents([read])
        return _added(read, status)

    return await run_in_threadpool(store)


@router.get("/documents", operation_id="listDocuments", summary="Ids of stored documents")
def list_(
    caller: TheCaller,
    after: Annotated[
        str, Query(max_length=512, description="The last id of the page before.")
    ] = "",
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
) -> schemas.DocumentIds:
    """In the order of the ids."""
    found = watching.document_ids(caller.tenant, after, limit)
    return schemas.DocumentIds(document_ids=found, next=found[-1] if len(found) == limit else None)


@router.get(
    "/documents/{document_id:any}",
    operation_id="getDocument",
    summary="A document with its newest text",
    responses=NOT_FOUND,
)
def get(document_id: schemas.DocumentId, caller: TheCaller) -> schemas.StoredDocument:
    """What jobs submitted now would work on."""
    found = watching.document(document_id, caller.tenant)
    return schemas.StoredDocument(
        document_id=found.document_id, content_hash=found.content_hash, text=found.text
    )
