"""The launcher's process, kept by the coordinator: real processes that do nothing in place of launchers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

import psutil
import pytest

from lockstep.server import cluster, launcher_process
from lockstep.server.cluster import ClusterKeeper, LauncherFacts
from tests.unit.server import silent_launcher
from tests.unit.server.harness import run

FACTS = LauncherFacts("127.0.0.1:1", "token", 1, "namespace", "json", 0.0, 0, 0, 0)


@pytest.fixture(autouse=True)
def no_real_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_process, "MODULE", silent_launcher.__name__)
    monkeypatch.setattr(cluster, "_FIRST_BACKOFF_S", 0.0)


def keeper_of(words: Callable[[], int]) -> ClusterKeeper:
    return ClusterKeeper(
        FACTS,
        launcher_is_up=lambda: True,
        launcher_words=words,
        launcher_timeout_s=0.3,
        ray_address="127.0.0.1:1",
        head=None,
    )


def launchers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if silent_launcher.__name__ in process.cmdline():
                found.append(process)
    return found


async def wait_for(is_so: Callable[[], bool]) -> None:
    while True:  # no event tells of another process
        if is_so():
            return
        await asyncio.sleep(0.01)


def test_a_frozen_launcher_is_killed_before_the_next_one_starts() -> None:
    async def scenario() -> None:
        words = iter(range(10**9))
        is_frozen = False
        keeper = keeper_of(lambda: 10**9 if is_frozen else next(words))
        keeper.start()
        await wait_for(lambda: bool(launchers()))
        (first,) = launchers()
        await asyncio.sleep(0.6)
        assert launchers() == [first], "it speaks"
        is_frozen = True
        os.kill(first.pid, signal.SIGSTOP)
        together = []

        def is_replaced() -> bool:
            together.append(len(launchers()))
            return bool(launchers()) and first not in launchers()

        await wait_for(is_replaced)
        assert max(together) == 1
        is_frozen = False
        await keeper.stop()
        assert not launchers()

    run(scenario())


def test_a_launcher_that_has_not_spoken_yet_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        keeper = keeper_of(lambda: 0)
        keeper.start()
        await wait_for(lambda: bool(launchers()))
        (first,) = launchers()
        await asyncio.sleep(0.6)
        assert launchers() == [first]
        monkeypatch.setattr(cluster, "_LAUNCHER_START_S", 0.1)
        await wait_for(lambda: bool(launchers()) and first not in launchers())
        await keeper.stop()

    run(scenario())
