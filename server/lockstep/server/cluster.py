"""Keeps a cluster under the coordinator: the embedded Ray, if there is one, and the launcher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from lockstep.server.launcher_process import LauncherOrders, LauncherProcess
from lockstep.server.ray_head import RayHead

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 30.0
# A process that ran this long was well, and its successor starts at once.
_WELL_AFTER_S = 60.0
_LAUNCHER_GRACE_S = 15.0
# One that has not come up yet has nothing to tidy, and may hang in connecting to Ray.
_UNREADY_LAUNCHER_GRACE_S = 1.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LauncherFacts:
    """What every launcher of this server is told."""

    coordinator_address: str
    launcher_token: str
    epoch: int
    namespace: str
    log_format: str

    def orders(self, ray_address: str) -> LauncherOrders:
        return LauncherOrders(ray_address=ray_address, **vars(self))


class ClusterKeeper:
    """Starts head and launcher in the background, and starts them again when they die."""

    def __init__(
        self, facts: LauncherFacts, *, launcher_is_up: Callable[[], bool], ray_address: str | None, head: RayHead | None
    ) -> None:
        assert (ray_address is None) != (head is None)
        self._facts = facts
        self._launcher_is_up = launcher_is_up
        self._ray_address = ray_address
        self._head = head
        self._launcher: LauncherProcess | None = None
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._keeping = asyncio.create_task(self._keep(), name="cluster keeper")

    async def stop(self) -> None:
        """End the launcher, then the embedded Ray."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._launcher is not None:
            await self._launcher.stop(self._launcher_grace_s())
            self._launcher = None
        if self._head is not None:
            await self._head.stop()

    def _launcher_grace_s(self) -> float:
        return _LAUNCHER_GRACE_S if self._launcher_is_up() else _UNREADY_LAUNCHER_GRACE_S

    def kill(self) -> None:
        """End everything at once, without waiting."""
        if self._launcher is not None:
            self._launcher.kill()
        if self._head is not None:
            self._head.kill()

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = _FIRST_BACKOFF_S
        while True:
            started = loop.time()
            try:
                await self._run_once()
            except Exception:
                log.exception("the cluster does not start")
            if loop.time() - started > _WELL_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            log.warning("starting the launcher again", after_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _run_once(self) -> None:
        """Run until the launcher or the head has died; then neither a launcher nor a broken head is left."""
        ray_address, environment = self._ray_address, dict(os.environ)
        if self._head is not None:
            ray_address, environment = await self._head.start(), self._head.environment()
        assert ray_address is not None
        self._launcher = LauncherProcess(self._facts.orders(ray_address), environment)
        launcher_died = asyncio.create_task(self._launcher.wait())
        waits: set[asyncio.Task[Any]] = {launcher_died}
        if self._head is not None:
            waits.add(asyncio.create_task(self._head.wait_until_dead()))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if launcher_died in done:
            log.warning("the launcher has died", status=launcher_died.result())
        await self._launcher.stop(self._launcher_grace_s())
        self._launcher = None
        if done - {launcher_died} and self._head is not None:
            log.warning("the embedded Ray has died")
            await self._head.stop()
