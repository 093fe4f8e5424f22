"""Open files: as many as the system lets this process have, some of them kept back, and a word when they run out."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import structlog

# Enough for any load that one server can bear; some kernels allow a thousand times as many, which slows others down.
_MOST = 65_536
# Kept for the store, logs, checkpoints, Ray and the HTTP port: connections of clients get the others.
_KEPT_BACK = 256
_LOOK_EVERY_S = 5.0
_NEAR = 0.8

log = structlog.get_logger(__name__)


def raise_limit() -> int:
    """Raise the limit of open files to what is allowed; returns it. What is started from now on has it, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return _MOST if soft == resource.RLIM_INFINITY else soft


def most_connections(limit: int) -> int:
    """Return how many connections clients may have at once, so that the server itself can still open files."""
    return max(limit - _KEPT_BACK, limit // 2)


def _count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def watch(limit: int) -> None:
    """Log when open files come near the limit, and when there is room again, for as long as it runs."""
    is_near = False
    while True:
        try:
            count = await asyncio.to_thread(_count)
        except OSError:  # counting them takes one more
            count = limit
        if (count >= _NEAR * limit) != is_near:
            is_near = not is_near
            if is_near:
                log.warning(
                    "open files come near their limit, and new connections may be refused; raise it (ulimit -n, "
                    "LimitNOFILE=) or close idle clients",
                    open=count,
                    limit=limit,
                )
            else:
                log.info("open files are well below their limit again", open=count, limit=limit)
        await asyncio.sleep(_LOOK_EVERY_S)
