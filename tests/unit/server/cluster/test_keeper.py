"""The launcher's process, kept by the coordinator: real processes that do nothing in place of launchers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from lockstep.server.cluster import keeper as keeper_module
from lockstep.server.cluster import launcher_process
from lockstep.server.cluster.keeper import ClusterKeeper
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.job_service_pb2 import GetJobRequest, ListJobsRequest
from lockstep.v1.launcher_pb2 import LauncherSettings
from tests.support import silent_launcher
from tests.support.server import serving

SETTINGS = LauncherSettings(coordinator_address="127.0.0.1:1", reports_address="127.0.0.1:1")


@pytest.fixture(autouse=True)
def no_real_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_process, "MODULE", silent_launcher.__name__)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[4]))  # the working directory is no place for modules
    monkeypatch.setattr(keeper_module, "_FIRST_BACKOFF_S", 0.0)


def keeper_of(
    words: Callable[[], int], head: Head | None = None, told: Callable[[str], None] = lambda trouble: None
) -> ClusterKeeper:
    return ClusterKeeper(
        SETTINGS,
        launcher_is_up=lambda: True,
        launcher_words=words,
        launcher_timeout_s=0.3,
        folder=Path("/"),
        ray_address=None,
        head=head or Head(),  # type: ignore[arg-type]
        told=told,
    )


class Head:
    """In place of an embedded Ray: one whose port is open, whatever else of it has died."""

    def __init__(self) -> None:
        self.stops = 0

    async def start(self) -> str:
        return "127.0.0.1:1"

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    async def wait_until_dead(self) -> None:
        await asyncio.Event().wait()

    async def stop(self) -> None:
        self.stops += 1


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


async def test_a_frozen_launcher_is_killed_before_the_next_one_starts() -> None:
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


async def test_a_launcher_that_cannot_be_watched_is_killed_before_the_next_one_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = 0

    class Launcher(launcher_process.LauncherProcess):
        def __init__(self, *args: Any) -> None:
            nonlocal started
            started += 1
            super().__init__(*args)

        async def wait(self) -> int:
            if started == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return await super().wait()

    monkeypatch.setattr(keeper_module, "LauncherProcess", Launcher)

    keeper = keeper_of(lambda: 0)
    keeper.start()
    await wait_for(lambda: started == 2 and len(launchers()) == 1)
    await keeper.stop()


async def test_a_launcher_that_has_not_spoken_yet_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    keeper = keeper_of(lambda: 0)
    keeper.start()
    await wait_for(lambda: bool(launchers()))
    (first,) = launchers()
    await asyncio.sleep(0.6)
    assert launchers() == [first]
    monkeypatch.setattr(keeper_module, "_LAUNCHER_START_S", 0.1)
    await wait_for(lambda: bool(launchers()) and first not in launchers())
    await keeper.stop()


@pytest.mark.parametrize("speaks", [False, True])
async def test_a_head_is_replaced_when_launchers_in_a_row_end_before_they_have_said_a_word(
    monkeypatch: pytest.MonkeyPatch, speaks: bool
) -> None:
    started = 0
    words = 0

    class Launcher(launcher_process.LauncherProcess):
        def __init__(self, *args: Any) -> None:
            nonlocal started
            started += 1
            super().__init__(*args)

        async def wait(self) -> int:
            nonlocal words
            status = await super().wait()
            words += speaks and started % 2
            return status

    monkeypatch.setattr(launcher_process, "MODULE", "abc")  # ends at once
    monkeypatch.setattr(keeper_module, "LauncherProcess", Launcher)
    monkeypatch.setattr(keeper_module, "_LONGEST_BACKOFF_S", 0.0)

    head = Head()
    keeper = keeper_of(lambda: words, head)
    keeper.start()
    await wait_for(lambda: started == 7)
    assert head.stops == (0 if speaks else 2)
    await keeper.stop()


async def test_nothing_that_a_launcher_prints_comes_to_the_servers_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher_process, "MODULE", "this")  # prints a poem, as Ray does paragraphs

    launcher = launcher_process.LauncherProcess(SETTINGS, dict(os.environ), tmp_path)
    assert await launcher.wait() == 0
    assert "Zen" not in capfd.readouterr().out


async def test_a_launcher_takes_no_modules_from_the_working_directory_and_no_proxy_to_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit(3)")
    (tmp_path / "folder").mkdir()
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "told.py").write_text(
        "import os, random, signal, sys\n"
        "print(os.getcwd(), os.environ['no_proxy'], file=sys.stderr)\n"
        "os.kill(os.getpid(), signal.SIGTERM)  # as a supervisor sends it to all processes at once\n"
    )
    monkeypatch.setattr(launcher_process, "MODULE", "told")
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"no_proxy": "a.b", "PYTHONPATH": str(tmp_path / "modules")}
    settings = LauncherSettings(reports_address="10.1.2.3:7000")

    launcher = launcher_process.LauncherProcess(settings, environment, tmp_path / "folder")
    assert await launcher.wait() == 0
    assert f"{tmp_path}/folder a.b,127.0.0.1,localhost,::1,10.1.2.3\n" in capfd.readouterr().err


async def test_a_launcher_that_says_nothing_before_it_ends_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher_process, "MODULE", "abc")  # ends at once

    troubles: list[str] = []
    keeper = keeper_of(lambda: 0, told=troubles.append)
    keeper.start()
    await wait_for(lambda: len(troubles) > 3)
    words = "the launcher ends before it can use the Ray at 127.0.0.1:1; the server's log says why"
    assert troubles[:4] == ["", words, words, words], "also while the next one connects"
    await keeper.stop()


@pytest.mark.parametrize("listens", [False, True])
async def test_where_no_ray_answers_no_launcher_is_started_and_nodes_and_jobs_say_so(
    tmp_path: Path, listens: bool
) -> None:
    async with serving(tmp_path) as server:
        # A port that is closed, or where something else listens: this server itself.
        address = server.application.grpc_address if listens else "127.0.0.1:1"
        parts = server.parts
        job = await server.submit()
        keeper = ClusterKeeper(
            SETTINGS,
            launcher_is_up=lambda: False,
            launcher_words=lambda: 0,
            launcher_timeout_s=30.0,
            folder=tmp_path,
            ray_address=address,
            head=None,
            told=partial(setattr, parts.dispatcher, "trouble"),
        )
        keeper.start()
        await wait_for(lambda: bool(parts.dispatcher.trouble))
        assert not launchers()
        reason = (await server.cluster.GetCluster(GetClusterRequest())).not_ready_reason
        assert reason.startswith(f"no Ray answers at {address}; start one there")
        assert (await server.jobs.GetJob(GetJobRequest(job_id=job.job_id))).state_reason == reason
        (listed,) = (await server.jobs.ListJobs(ListJobsRequest())).jobs
        assert listed.state_reason == reason
        await keeper.stop()


async def test_words_about_a_ray_that_does_not_answer_end_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path) as server:
        dispatcher = server.parts.dispatcher
        answers = False

        async def ray_answers(address: str) -> bool:
            return answers

        monkeypatch.setattr(keeper_module, "ray_answers", ray_answers)
        keeper = ClusterKeeper(
            SETTINGS,
            launcher_is_up=lambda: False,
            launcher_words=lambda: 0,
            launcher_timeout_s=30.0,
            folder=tmp_path,
            ray_address="127.0.0.1:1",
            head=None,
            told=partial(setattr, dispatcher, "trouble"),
        )
        keeper.start()
        await wait_for(lambda: "no Ray answers" in dispatcher.why_not_ready())
        answers = True
        await wait_for(lambda: bool(launchers()))
        assert dispatcher.why_not_ready() == "no launcher is in service yet; jobs wait until the cluster is up"
        await keeper.stop()


async def test_words_about_the_cluster_of_before_are_forgotten_when_a_launcher_comes_into_service(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        dispatcher = server.parts.dispatcher
        dispatcher.trouble = "no Ray answers"
        launcher = server.launcher()
        await launcher.be_ready()
        await dispatcher.cluster_is_ready.wait()
        await launcher.leave()
        await wait_for(lambda: not dispatcher.has_launcher)
        assert dispatcher.why_not_ready().startswith("the launcher is gone and is being replaced")


async def test_workers_that_are_taken_over_report_to_the_address_that_they_were_started_with(tmp_path: Path) -> None:
    async with serving(tmp_path, advertise_address="10.1.2.3:7000") as server:
        launcher = server.launcher()
        await launcher.be_ready()
        await server.submit()
        started = await launcher.next_start()
        facts = server.application._launcher_settings()
        assert started.coordinator_address == facts.reports_address == "10.1.2.3:7000"
        assert facts.coordinator_address == server.application.grpc_address
