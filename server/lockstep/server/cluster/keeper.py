"""Keeps a cluster under the coordinator: the embedded Ray, if there is one, and the launcher."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from lockstep.server.cluster.launcher_process import LauncherProcess
from lockstep.server.cluster.ray_head import RayHead
from lockstep.server.cluster.ray_probe import ray_answers
from lockstep.server.process.background import keep_running
from lockstep.server.process.timeouts import PARTS
from lockstep.v1.launcher_pb2 import LauncherSettings

_FIRST_BACKOFF_S = 1.0
_LONGEST_BACKOFF_S = 30.0
# A process that ran this long was well, and its successor starts at once.
_WELL_AFTER_S = 60.0
_LAUNCHER_GRACE_S = 15.0
# One that has not come up yet has nothing to tidy, and may hang in connecting to Ray.
_UNREADY_LAUNCHER_GRACE_S = 1.0
# How long one may take to say its first word: it connects to Ray before.
_LAUNCHER_START_S = 120.0
# A Ray whose processes have died in part keeps its port open, and no launcher can use it.
_MUTE_LAUNCHERS_PER_HEAD = 3

log = structlog.get_logger(__name__)


class NoCluster(Exception):
    """There is no cluster to use; in words for users."""


class ClusterKeeper:
    """Starts head and launcher in the background, and starts them again when they die.

    A launcher that says nothing for long is killed, and is dead before the next one starts: there are never two.
    """

    def __init__(
        self,
        settings: LauncherSettings,
        *,
        launcher_is_up: Callable[[], bool],
        launcher_words: Callable[[], int],
        launcher_timeout_s: float,
        folder: Path,
        ray_address: str | None,
        head: RayHead | None,
        told: Callable[[str], None] = lambda trouble: None,
    ) -> None:
        """Prepare to keep a cluster.

        Args:
            settings: what launchers are told; the address of Ray is filled in.
            launcher_is_up: says whether the launcher is in service.
            launcher_words: counts what launchers have said.
            launcher_timeout_s: how long a launcher may say nothing.
            folder: the working directory of launchers.
            ray_address: the cluster, if it is not embedded.
            head: the embedded Ray, if there is one.
            told: called with what stands in the way of the cluster, in words; empty when nothing does.
        """
        assert (ray_address is None) != (head is None)
        self._settings = settings
        self._launcher_is_up = launcher_is_up
        self._launcher_words = launcher_words
        self._launcher_timeout_s = launcher_timeout_s
        self._folder = folder
        self._ray_address = ray_address
        self._head = head
        self._told = told
        self._launcher: LauncherProcess | None = None
        self._mute_launchers = 0
        self._keeping: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._keeping = keep_running(self._keep(), name="cluster keeper")

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
            except NoCluster as error:
                log.warning("no cluster", why=str(error))
                self._told(str(error))
            except Exception as error:
                log.exception("the cluster does not start")
                self._told(f"the cluster does not start: {error}")
            if loop.time() - started > _WELL_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            log.warning("starting the launcher again", after_s=backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _run_once(self) -> None:
        """Run until the launcher or the head has died; then neither a launcher nor a broken head is left.

        A head counts as broken, too, when several launchers in a row have ended before they said a word.
        """
        ray_address, environment = await self._find_ray()
        self._tell_of_mute_launchers(ray_address)
        settings = LauncherSettings(ray_address=ray_address)
        settings.MergeFrom(self._settings)
        self._launcher = LauncherProcess(settings, environment, self._folder)
        heard = self._launcher_words()
        launcher_died = asyncio.create_task(self._launcher.wait())
        launcher_is_silent = asyncio.create_task(self._silence())
        waits: set[asyncio.Task[Any]] = {launcher_died, launcher_is_silent}
        if self._head is not None:
            waits.add(asyncio.create_task(self._head.wait_until_dead()))
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        for wait in done:
            if error := wait.exception():  # no file is left to watch it by
                self._launcher.kill()
                await self._launcher.stop(0.0)
                raise error
        if launcher_died in done:
            log.warning("the launcher has died", status=launcher_died.result())
        elif launcher_is_silent in done:
            log.warning("the launcher says nothing and is killed", timeout_s=self._launcher_timeout_s)
            self._launcher.kill()
        await self._launcher.stop(self._launcher_grace_s())
        self._launcher = None
        self._mute_launchers = 0 if self._launcher_words() != heard else self._mute_launchers + 1
        self._tell_of_mute_launchers(ray_address)
        head_died = bool(done - {launcher_died, launcher_is_silent})
        if self._head is not None and (head_died or self._mute_launchers >= _MUTE_LAUNCHERS_PER_HEAD):
            log.warning("the embedded Ray is replaced", has_died=head_died, mute_launchers=self._mute_launchers)
            self._mute_launchers = 0
            await self._head.stop()

    def _tell_of_mute_launchers(self, ray_address: str) -> None:
        """Say of a Ray that answers whether it is of use, in place of what was said before."""
        self._told(
            f"the launcher ends before it can use the Ray at {ray_address}; the server's log says why"
            if self._mute_launchers
            else ""
        )

    async def _find_ray(self) -> tuple[str, dict[str, str]]:
        """Return the address of the cluster, which answers there, and the environment of whoever speaks with it."""
        if self._head is not None:
            return await self._head.start(), self._head.environment()
        assert self._ray_address is not None
        if not await ray_answers(self._ray_address):
            raise NoCluster(
                f"no Ray answers at {self._ray_address}; start one there (ray start --head), or start this server with "
                "the --ray-address of one that runs, or without, to have one started here"
            )
        return self._ray_address, dict(os.environ)

    async def _silence(self) -> None:
        """Return when the launcher that was just started has said nothing for too long."""
        heard = first = self._launcher_words()
        silent_s = 0.0  # waited for in parts, as `done_within` does
        part_s = self._launcher_timeout_s / PARTS
        while silent_s < (_LAUNCHER_START_S if heard == first else self._launcher_timeout_s):
            await asyncio.sleep(part_s)
            words = self._launcher_words()
            silent_s = silent_s + part_s if words == heard else 0.0
            heard = words
