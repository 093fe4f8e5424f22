"""The launcher's process: started with its settings on standard input, which it must not outlive."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import structlog
from google.protobuf import json_format

from lockstep.server.cluster import ray_environment
from lockstep.server.process import children
from lockstep.v1.launcher_pb2 import LauncherSettings

MODULE = "lockstep.workers.launcher"

log = structlog.get_logger(__name__)


def launcher_is_installed() -> bool:
    """Say whether the package that holds the launcher can be imported."""
    return importlib.util.find_spec("lockstep.workers") is not None


class LauncherProcess:
    """One life of the launcher."""

    def __init__(self, settings: LauncherSettings, environment: dict[str, str], folder: Path) -> None:
        """Start it.

        Args:
            settings: what it is told, by the first line on its standard input.
            environment: its environment; proxies for the server's own address are taken out.
            folder: its working directory, which Ray adds to the modules of every worker: one that holds none.
        """
        # Logs go to standard error; to standard output Ray writes paragraphs about workers that died, and offers no
        # switch for them.
        with children.ending_signals_blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                cwd=folder,
                env=ray_environment.of_children(environment, settings.reports_address),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json_format.MessageToJson(settings, indent=None).encode() + b"\n")
            self._process.stdin.flush()
        log.info("launcher started", pid=self._process.pid)

    async def wait(self) -> int:
        """Return its exit status when it has ended."""
        await children.wait_until_dead(self._process.pid)
        status = self._process.wait()
        self._close_input()
        return status

    async def stop(self, grace_s: float) -> None:
        """Tell it to leave by closing its input; end it if it has not after `grace_s` seconds."""
        self._close_input()
        if self._process.poll() is not None:
            return
        try:
            has_left = await children.died_within(self._process.pid, grace_s)
        except OSError:  # no file is left to watch it by
            has_left = False
        if not has_left:
            log.warning("the launcher does not leave and is killed", pid=self._process.pid)
            children.send(self._process.pid, signal.SIGKILL)
        await asyncio.to_thread(self._process.wait)

    def kill(self) -> None:
        """End it and the processes of its session at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _close_input(self) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
