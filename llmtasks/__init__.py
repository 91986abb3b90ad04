"""llmtasks: summaries, entities and translations of a mountain of documents, with LLMs.

    from llmtasks import add_document, process_document, submit_batch

    add_document("Some text ...", "doc-123")
    process_document.delay("doc-123", "summarize")

Importing connects to nothing, starts nothing, and loads no provider's SDK; Celery and SQLAlchemy are
loaded with the first name that needs them, so that commands which do not stay quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmtasks.client import (
        Batch,
        JobResult,
        add_document,
        cancel,
        get_result,
        results,
        retry,
        status,
        submit_batch,
    )
    from llmtasks.errors import LLMTasksError
    from llmtasks.tasks import process_document

__all__ = [
    "Batch",
    "JobResult",
    "LLMTasksError",
    "add_document",
    "cancel",
    "get_result",
    "process_document",
    "results",
    "retry",
    "status",
    "submit_batch",
]

#: The one place of the version: the package's metadata and `llmtasks --version` are made from it.
__version__ = "0.1.0"

_HOMES = {"LLMTasksError": "llmtasks.errors", "process_document": "llmtasks.tasks"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "llmtasks.client")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
