"""`limits`: its sliding window counter, hit once for the request and once for its tokens.

Two scripts, not atomic together; it refuses and knows no time to come back, and nothing is settled.
"""

from __future__ import annotations

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from peers import clients


async def _opened(url: str) -> clients.Once:
    limiter = SlidingWindowCounterRateLimiter(
        RedisStorage(f"async+{url}", implementation="redispy")
    )
    requests = RateLimitItemPerMinute(100_000_000)
    tokens = RateLimitItemPerMinute(100_000_000_000)

    async def once() -> None:
        granted = await limiter.hit(requests, "p0", "requests")
        granted = granted and await limiter.hit(tokens, "p0", "tokens", cost=428)
        assert granted

    return once


OPERATIONS = {"admit": _opened}

if __name__ == "__main__":
    clients.main(OPERATIONS)
