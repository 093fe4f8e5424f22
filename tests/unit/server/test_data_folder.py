"""The data folder: whose it is, who may look into it, and which names it may have."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from lockstep.server import data_folder
from lockstep.server.settings import Address, StartupError
from tests.support.server import serving

FREE = ("--listen", Address("127.0.0.1", 0))


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_whatever_the_server_makes_in_its_folder_is_closed_to_others(tmp_path: Path, umask: int) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "new" / "data") as server:
            await server.submit()

    before = os.umask(umask)
    try:
        asyncio.run(scenario())
    finally:
        os.umask(before)
    made = [tmp_path / "new" / "data", *(tmp_path / "new" / "data").iterdir()]
    assert {path.name for path in made} >= {"data", "lockstep.db", "secret", "server.lock", "logs", "checkpoints"}
    assert [path.name for path in made if path.stat().st_mode & 0o077] == []


def test_a_folder_that_others_may_enter_is_used_and_what_was_open_in_it_is_closed(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async def scenario() -> None:
        async with serving(tmp_path):
            pass

    (tmp_path / "lockstep.db").touch(0o644)
    (tmp_path / "logs").mkdir()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    elsewhere.chmod(0o755)
    (tmp_path / "checkpoints").symlink_to(elsewhere)
    tmp_path.chmod(0o755)
    with capture_logs() as logs:
        asyncio.run(scenario())
        (tmp_path / "lockstep.db").chmod(0o644)
        asyncio.run(scenario())
    told = [line for line in logs if line["log_level"] == "warning"]
    assert [line["hint"] for line in told] == [f"chmod 700 {tmp_path}"] * 2
    assert tmp_path.stat().st_mode & 0o777 == 0o755, "it is not ours to change"
    assert [path.name for path in tmp_path.iterdir() if path.stat().st_mode & 0o077] == ["checkpoints"]


@pytest.mark.parametrize("name", ["runs?team=a", "p%20x", "p x", "a#b", 'sp\'ace "q"', "ünïcode", "file:x", "a;b&c"])
async def test_each_folder_has_its_own_store_whatever_it_is_called(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with serving(Path(name)) as server:
        await server.submit()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "lockstep.db").stat().st_size > 0


def test_a_name_that_no_job_could_be_told_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="is not UTF-8"):
        data_folder.take(tmp_path / os.fsdecode(b"a\xff"), [FREE])
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_named_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        words = f"cannot listen on {address}: Address already in use; choose another with --http"
        with pytest.raises(StartupError, match=words):
            data_folder.take(tmp_path / "a" / "b", [FREE, ("--http", address)])
        assert not list(tmp_path.iterdir())
        data_folder.take(tmp_path / "a", [FREE]).close()
        kept = sorted(path.name for path in (tmp_path / "a").iterdir())
        with pytest.raises(StartupError, match=words):
            data_folder.take(tmp_path / "a", [("--http", address)])
        assert sorted(path.name for path in (tmp_path / "a").iterdir()) == kept


def test_a_folder_in_use_is_named_before_the_ports_that_are_taken_with_it(tmp_path: Path) -> None:
    with data_folder.take(tmp_path, [FREE]), socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartupError, match=f"in use by the server with pid {os.getpid()}"):
            data_folder.take(tmp_path, [("--listen", address)])


@pytest.mark.parametrize(
    "place", [lambda old: shutil.copytree(old, f"{old}-2"), lambda old: shutil.move(old, f"{old}-2")]
)
def test_a_copy_and_a_folder_that_was_moved_are_told_from_what_they_were(
    tmp_path: Path, place: Callable[[Path], str]
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (tmp_path / "link").symlink_to(old)
    before = data_folder.identity(old)
    assert data_folder.identity(tmp_path / "link") == before
    assert data_folder.identity(Path(place(old))) != before
