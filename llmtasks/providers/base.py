"""What a provider is to the rest of the project: something that completes requests."""

from __future__ import annotations

from typing import Protocol

from llmtasks.messages import Completion, Request


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

    async def complete(self, request: Request) -> Completion:
        """Ask once. Cancelling the coroutine gives up the HTTP request and closes its connection.

        Raises:
            ProviderError: There is no answer; the subclass says why, `maybe_paid` whether it may
                cost.
        """

    async def aclose(self) -> None:
        """Close the connections; the provider cannot be used afterwards."""
