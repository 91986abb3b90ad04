"""The models we ask: one module per kind of API, every error translated into ours.

An SDK takes a second to import, so only the configured kinds are, and only when built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llmtasks import settings
from llmtasks.providers.base import Provider

__all__ = ["Provider", "build"]


def build(provider: settings.Provider, api_key: str | None) -> Provider:
    """The client of one `[[providers]]` entry. Opens no connection.

    Raises:
        ConfigurationError: The key cannot be sent in a header.
    """
    return _KINDS[provider.kind](provider, api_key)


def _openai(provider: settings.Provider, api_key: str | None) -> Provider:
    from llmtasks.providers.openai import OpenAIProvider

    return OpenAIProvider(provider, api_key)


def _anthropic(provider: settings.Provider, api_key: str | None) -> Provider:
    from llmtasks.providers.anthropic import AnthropicProvider

    return AnthropicProvider(provider, api_key)


_KINDS: Mapping[str, Callable[[settings.Provider, str | None], Provider]] = {
    "openai": _openai,
    "anthropic": _anthropic,
}
