"""The servers that are configured, asked before anything is started on them."""

from __future__ import annotations

from llmtasks.errors import AdmissionUnavailable, ConfigurationError
from llmtasks.settings import Settings

#: Seconds that a server has to answer.
ANSWER_S = 5.0


def require_servers(settings: Settings) -> None:
    """The configured broker and Redis answer; the embedded one is not asked.

    Raises:
        AdmissionUnavailable: naming the key, and why it does not answer.
        ConfigurationError: one of them is a cluster, and not known as one.
    """
    if not settings.embedded:
        _require("broker.url", settings.broker_url, cluster=False)
    if settings.redis.url:
        _require("redis.url", settings.redis_url, cluster=settings.redis.cluster)


def _require(key: str, url: str, *, cluster: bool) -> None:
    from llmtasks.admission.probe import probe

    state = probe(url, ANSWER_S)
    if state.failure:
        raise AdmissionUnavailable(f"{key}: {state.address} does not answer: {state.failure}")
    if state.cluster and not cluster:
        raise ConfigurationError(
            f"{key}: {state.address} is a node of a cluster; set redis.cluster to true where it is"
            " redis.url alone that names it"
        )
