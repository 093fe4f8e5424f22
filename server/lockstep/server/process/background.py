"""Work that goes on for as long as the server does: when it ends before, the log says so."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def keep_running(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task that ends only by being cancelled."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_tell_of_its_end)
    return task


def _tell_of_its_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("what should go on until the server stops has ended", task=task.get_name(), exc_info=error)
