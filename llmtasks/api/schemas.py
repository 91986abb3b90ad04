"""Bodies and answers, as OpenAPI tells them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from llmtasks.jobs import MAX_PRIORITY
from llmtasks.store.names import MAX_DOCUMENT_ID, MAX_ID
from llmtasks.submission import MAX_DEADLINE_S

#: No NUL, which no database keeps; lone surrogates do not get through UTF-8.
_NO_NUL = r"^[^\x00]*$"

DocumentId = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_DOCUMENT_ID, pattern=_NO_NUL)
]
#: Of a batch that is to be: one with a slash could not be asked for afterwards.
NewId = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID, pattern=r"^[^\x00/]*$")]


def _whole(value: object) -> object:
    """JSON has one kind of numbers: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
Text = Annotated[str, StringConstraints(pattern=_NO_NUL)]


class Body(BaseModel):
    """Of a request: what is not known is refused, and nothing is bent into its type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewDocument(Body):
    """A document to store."""

    id: DocumentId | None = Field(None, description="Default: a digest of the text.")
    text: str = Field(min_length=1, examples=["The parties agree as follows."])


class NewDocuments(Body):
    """Documents to store."""

    documents: list[NewDocument] = Field(min_length=1, max_length=1_000)


class Added(BaseModel):
    """What became of a document."""

    document_id: str | None
    status: Literal["added", "exists", "updated", "error"]
    error: str | None = None


class DocumentIds(BaseModel):
    """A page of ids, in their order."""

    document_ids: list[str]
    next: str | None = Field(
        description="What `after` gives the next page with; null: there is none."
    )


class StoredDocument(BaseModel):
    """A document with its newest text."""

    document_id: str
    content_hash: str
    text: str


class _Submission(Body):
    task_type: str = Field(examples=["summarize"], max_length=64)
    options: dict[str, Any] = Field(
        default_factory=dict, description="The task type's own.", examples=[{"max_words": 60}]
    )
    priority: Whole = Field(0, ge=0, le=MAX_PRIORITY, description="9 goes first.")
    fresh: bool = Field(default=False, description="Ask again, although the answer is stored.")
    stream: bool = Field(
        default=False, description="Answers can be watched while they are written."
    )
    deadline_s: float | None = Field(
        None, gt=0, le=MAX_DEADLINE_S, description="Seconds from now after which it fails."
    )

    def common(self) -> dict[str, Any]:
        """As `submit_batch` takes it."""
        return {
            "priority": self.priority,
            "fresh": self.fresh,
            "stream": self.stream,
            "deadline_s": self.deadline_s,
        }


class NewJob(_Submission):
    """One document, one task."""

    document_id: DocumentId


class NewBatch(_Submission):
    """Many documents, one task: by their ids, or all that are stored."""

    document_ids: list[DocumentId] | None = Field(None, min_length=1, examples=[["doc-1", "doc-2"]])
    all: bool = Field(default=False, description="Of all stored documents.")
    batch_id: NewId | None = Field(
        None, description="Default: a new one. A second batch of the same id is refused (409)."
    )


class SubmittedJob(BaseModel):
    """A job that has its row: it is not lost any more."""

    job_id: str


class SubmittedBatch(BaseModel):
    """A batch whose jobs have their rows."""

    batch_id: str
    jobs: int


class Usage(BaseModel):
    """Tokens as providers counted them."""

    input_tokens: int
    output_tokens: int


class Status(BaseModel):
    """Where a batch stands: the shape of `llmtasks status --json`."""

    batch_id: str
    state: Literal["running", "completed", "partial", "failed", "cancelled"]
    total: int
    queued: int
    running: int
    waiting: int
    completed: int
    failed: int
    cancelled: int
    cached: int
    taken_over: int
    usage: Usage
    cost_usd: float | None
    reasons: dict[str, int]


class Fault(BaseModel):
    """What went wrong."""

    type: str
    message: str


class Error(BaseModel):
    """Every answer that is no success."""

    error: Fault


class Result(BaseModel):
    """A job and what it gave: a line of `llmtasks results --format jsonl`."""

    job_id: str
    document_id: str
    task_type: str
    state: Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]
    output: Any
    error: Fault | None
    provider: str | None
    model: str | None
    usage: Usage
    cost_usd: float | None
    cached: bool


class Count(BaseModel):
    """How many jobs it concerned."""

    jobs: int


class Retry(Body):
    """What to queue again."""

    failed_only: bool = Field(default=False, description="Leave what was cancelled.")


class Turn(Body):
    """What one side said."""

    role: Literal["system", "user", "assistant"]
    content: Text


class Chat(Body):
    """A conversation; the last turn is the user's."""

    messages: list[Turn] = Field(
        min_length=1, max_length=1_000, examples=[[{"role": "user", "content": "Say hello."}]]
    )
    model: str | None = Field(None, description="A provider's name or model. Default: any.")
    max_output_tokens: Whole | None = Field(None, ge=1, le=1_000_000)
    temperature: float = Field(0.0, ge=0, le=2)
    priority: Whole = Field(MAX_PRIORITY, ge=0, le=MAX_PRIORITY, description="9 goes first.")


class TaskTypeName(BaseModel):
    """A task type and its queue."""

    name: str
    queue: str


class Target(BaseModel):
    """An element of Prometheus' HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]


class Health(BaseModel):
    """That a server is there."""

    status: Literal["ok"]


class Ready(BaseModel):
    """Whether what a server needs answers: `ok`, or why not."""

    database: str
    redis: str


#: A server-sent event. What its `data` is goes by the stream and the event's kind.
EVENT: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "event": {"enum": ["message", "end", "result", "reset", "error"]},
        "data": {"type": "string", "description": "JSON, or `[DONE]`."},
    },
    "required": ["data"],
}
