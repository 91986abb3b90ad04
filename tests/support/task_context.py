"""A task context with scripted answers: values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from llmtasks import task_types
from llmtasks.messages import Request
from llmtasks.task_types import Document, Prompt

DOCUMENT_ID = "doc-1"

T = TypeVar("T")


def document(text: str) -> Document:
    """A document of this text."""
    return Document(DOCUMENT_ID, text)


class Scripted:
    """Answers one question after the other; an exception among the answers is raised instead."""

    def __init__(
        self,
        task_type: str,
        answers: Sequence[str | Exception] = (),
        max_output_tokens: int | None = None,
    ) -> None:
        self.prompt: Prompt = task_types.load_prompt(task_types.get(task_type))
        self.temperature = 0.0
        self.max_output_tokens = max_output_tokens
        self.asked: list[Request] = []
        self.reported: list[str] = []
        self._answers = list(answers)

    def ask(self, request: Request, accept: Callable[[str], T]) -> T:
        self.asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return accept(answer)

    def report(self, text: str) -> None:
        self.reported.append(text)
