"""LiteLLM's router with `enforce_model_rate_limits` over Redis: requests and tokens per minute.

`admit` is what it does before a call: choose the deployment, check its limits (tokens are read, requests
counted; tokens are charged after the call). `call` is a whole `acompletion` with a mocked answer, so that
what it books afterwards is in it, with all else that it does for a call. `call-unlimited` is the same
without limits and without Redis: the difference of the two is what its limits cost.
"""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from typing import Any
from urllib.parse import urlsplit

import litellm
from litellm import Router
from peers import clients

litellm.suppress_debug_info = True
_MESSAGES = [{"role": "user", "content": "A document of a few words."}]


def _router(url: str | None) -> Router:
    parameters: dict[str, Any] = {"model": "openai/gpt-4o-mini", "api_key": "none"}
    options: dict[str, Any] = {}
    if url is not None:
        parameters |= {"rpm": 100_000_000, "tpm": 100_000_000_000}
        server = urlsplit(url)
        options = {
            "redis_host": server.hostname,
            "redis_port": server.port,
            "optional_pre_call_checks": ["enforce_model_rate_limits"],
        }
    model = {"model_name": "m", "litellm_params": parameters}
    return Router(model_list=[model], num_retries=0, **options)


async def _admit(url: str) -> clients.Once:
    router = _router(url)

    async def once() -> None:
        chosen = await router.async_get_available_deployment("m", {}, messages=_MESSAGES)
        await router.async_routing_strategy_pre_call_checks(chosen, None)

    return once


def _call(*, limited: bool) -> clients.Open:
    async def opened(url: str) -> clients.Once:
        router = _router(url if limited else None)

        async def once() -> None:
            await router.acompletion("m", _MESSAGES, mock_response="ok", max_tokens=128)

        return once

    return opened


OPERATIONS = {
    "admit": _admit,
    "call": _call(limited=True),
    "call-unlimited": _call(limited=False),
}

if __name__ == "__main__":
    clients.main(OPERATIONS)
