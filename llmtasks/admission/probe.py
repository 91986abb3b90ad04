"""What a Redis says of itself: whether it answers, and whether it may forget what it was given."""

from __future__ import annotations

import re
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from llmtasks.addresses import for_client, public

_WHERE = re.compile(r"Error -?\d+ connecting to \S+\. ")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """A server's answer; `failure` says why there is none, and then the rest says nothing.

    `policy` is its `maxmemory-policy`, `persistent` whether it keeps an append-only file,
    `cluster` whether it is a node of a cluster, of which it says nothing else.
    """

    address: str
    failure: str | None = None
    software: str = ""
    policy: str | None = None
    persistent: bool | None = None
    cluster: bool = False


def probe(url: str, timeout_s: float) -> ServerState:
    """Ask the server at `url`, given in redis-py's or Celery's form. Changes nothing there."""
    try:
        with redis.Redis.from_url(
            for_client(url),
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        ) as client:
            client.ping()
            told = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        return ServerState(address=public(url), failure=_why(error))
    return _state(url, told if isinstance(told, dict) else {})


def _state(url: str, told: dict[str, object]) -> ServerState:
    valkey = told.get("valkey_version")
    aof = told.get("aof_enabled")
    policy = told.get("maxmemory_policy")
    return ServerState(
        address=public(url),
        software=f"Valkey {valkey}" if valkey else f"Redis {told.get('redis_version', '?')}",
        policy=None if policy is None else str(policy),
        persistent=None if aof is None else bool(aof),
        cluster=told.get("cluster_enabled") in (1, "1"),
    )


def _why(error: Exception) -> str:
    """One line; redis-py's texts hold no password, and begin with an address that is named already."""
    text = _WHERE.sub("", " ".join(str(error).split())).rstrip(".")
    return text[:1].lower() + text[1:] or type(error).__name__
