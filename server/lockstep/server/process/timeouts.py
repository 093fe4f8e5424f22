"""Waiting for others for a while, which a pause of this process does not cut short.

All processes of a machine may be stopped and go on, as by a snapshot of a virtual machine. A timeout that ran out
meanwhile says nothing of whoever is waited for. So time is waited for in parts, of which a pause costs one at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

PARTS = 5


async def done_within(work: Coroutine[Any, Any, object], timeout_s: float) -> bool:
    """Wait for something, for a while; it is cancelled when that is over. Says whether it was done."""
    task = asyncio.ensure_future(work)
    try:
        for _ in range(PARTS):
            if (await asyncio.wait([task], timeout=timeout_s / PARTS))[0]:
                break
    finally:
        is_done = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if is_done:
        task.result()
    return is_done
