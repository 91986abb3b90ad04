"""`throttled-py`: its GCRA, asked once for the request and once for its tokens.

Two scripts, not atomic together; it tells when to come back and reserves nothing; nothing is settled.
"""

from __future__ import annotations

from peers import clients
from throttled.asyncio import RateLimiterType, RedisStore, Throttled, rate_limiter


async def _opened(url: str) -> clients.Once:
    store = RedisStore(server=url)

    def limit(per_minute: int) -> Throttled:
        return Throttled(
            using=RateLimiterType.GCRA.value,
            quota=rate_limiter.per_min(per_minute, burst=per_minute // 60),
            store=store,
        )

    requests, tokens = limit(100_000_000), limit(100_000_000_000)

    async def once() -> None:
        first = await requests.limit("p0:requests")
        second = await tokens.limit("p0:tokens", cost=428)
        assert not first.limited
        assert not second.limited

    return once


OPERATIONS = {"admit": _opened}

if __name__ == "__main__":
    clients.main(OPERATIONS)
