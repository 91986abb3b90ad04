"""What a provider is to the rest of the project: something that completes requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from llmtasks.messages import Completion, Request

#: Takes the pieces of an answer in their order, while it is written. On the loop: it must not block.
OnText = Callable[[str], None]

#: By kind; given explicitly, because the SDKs would else ask OPENAI_BASE_URL or ANTHROPIC_BASE_URL.
OFFICIAL_URLS: Final[Mapping[str, str]] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}


class Provider(Protocol):
    """One `[[providers]]` entry, ready to be called.

    Lives on one event loop; any number of calls may be in flight. It never retries, never waits
    for a rate limit and keeps no state between calls but its open connections.
    """

    @property
    def name(self) -> str:
        """Its unique name in the settings."""

    @property
    def model(self) -> str:
        """The model it was configured with."""

    async def complete(self, request: Request, on_text: OnText | None = None) -> Completion:
        """Ask once; with `on_text` the answer is streamed, and still returned as a whole.

        What was given to `on_text` is void when an error is raised. Cancelling the coroutine gives up the
        HTTP request and closes its connection.

        Raises:
            ProviderError: There is no answer; the subclass says why, `maybe_paid` whether it may
                cost.
        """

    async def aclose(self) -> None:
        """Close the connections; the provider cannot be used afterwards."""
