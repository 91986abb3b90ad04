"""Names of questions. Two questions have the same key exactly when one answer serves both.

A key is the SHA-256 of a canonical JSON text: keys sorted, option text in one Unicode form, 0 and 0.0
the same number. `_VERSION` is part of it: raise it when the meaning of an answer changes, and nothing
that was stored before is found again.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from llmtasks.messages import Request

_VERSION = 1

#: What may answer: the provider's kind, its model, and its address (None: the vendor's own).
Model = tuple[str, str, str | None]


def answer_key(
    *,
    tenant: str,
    task_type: str,
    options: Mapping[str, Any],
    document_hash: str,
    prompt_sha256: str,
    models: Iterable[Model],
    temperature: float,
    max_output_tokens: int | None,
    schema: Mapping[str, Any] | None,
) -> str:
    """The key of a job's whole result.

    `options` are the validated ones, with their defaults; `models` all that may answer, in any order;
    `max_output_tokens` the user's setting, None for the task type's own.
    """
    return _digest(
        {
            "kind": "answer",
            "tenant": tenant,
            "task_type": task_type,
            "options": _composed(options),
            "document": document_hash,
            "prompt": prompt_sha256,
            "models": _models(models),
            "temperature": temperature,
            "max_output_tokens": max_output_tokens,
            "schema": schema,
        }
    )


def request_key(tenant: str, models: Iterable[Model], request: Request) -> str:
    """The key of a single question to a model: what the cache and the shared calls go by."""
    history = [[turn.role, turn.text] for turn in request.history]
    return _digest(
        {
            **({"history": history} if history else {}),
            "kind": "request",
            "tenant": tenant,
            "models": _models(models),
            "system": request.system,
            "prompt": request.prompt,
            "max_output_tokens": request.max_output_tokens,
            "temperature": request.temperature,
            "schema": request.output_schema,
            "schema_name": request.schema_name if request.output_schema is not None else None,
        }
    )


def _models(models: Iterable[Model]) -> list[list[str]]:
    """Order and repetition of the settings file do not matter, nor does a slash at an address's end."""
    return [list(one) for one in sorted({(k, m, (url or "").rstrip("/")) for k, m, url in models})]


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(
        _canonical({"version": _VERSION, **value}),
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    """JSON values only, whole numbers as integers."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(one) for one in value]
    return value


def _composed(value: Any) -> Any:
    """All text in Unicode's composed form: an option typed on another keyboard is the same option."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, Mapping):
        return {_composed(key): _composed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_composed(one) for one in value]
    return value
