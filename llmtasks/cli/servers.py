"""The servers that are configured, asked before anything is started on them."""

from __future__ import annotations

from llmtasks.errors import AdmissionUnavailable
from llmtasks.settings import Settings

#: Seconds that a server has to answer.
ANSWER_S = 5.0


def require_servers(settings: Settings) -> None:
    """The configured broker and Redis answer; the embedded one is not asked.

    Raises:
        AdmissionUnavailable: naming the key, and why it does not answer.
    """
    if not settings.embedded:
        _require("broker.url", settings.broker_url)
    if settings.redis.url:
        _require("redis.url", settings.redis_url)


def _require(key: str, url: str) -> None:
    from llmtasks.admission.probe import probe

    state = probe(url, ANSWER_S)
    if state.failure:
        raise AdmissionUnavailable(f"{key}: {state.address} does not answer: {state.failure}")
