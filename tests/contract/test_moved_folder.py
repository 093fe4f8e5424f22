"""A data folder that is moved or copied between two starts of its server: what lies in it is found where it is now."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lockstep.server.settings import StartupError
from lockstep.v1.checkpoint_service_pb2 import DownloadCheckpointRequest, ListCheckpointsRequest
from tests.support.server import serving, write_checkpoint


@pytest.mark.parametrize("place", [shutil.move, shutil.copytree])
@pytest.mark.parametrize(("scheme", "name"), [("", "new"), ("file://", "new"), ("file://", "new_%"), ("file://", "n")])
async def test_checkpoints_go_along_with_the_folder_and_others_stay_where_they_are(
    tmp_path: Path, place: Callable[[Path, Path], object], scheme: str, name: str
) -> None:
    def where(uri: str) -> Path:
        return Path(uri.removeprefix(scheme))

    old, new = tmp_path / "old", tmp_path / "place" / name
    new.parent.mkdir()
    async with serving(old) as server:
        launcher = server.launcher()
        await launcher.be_ready(cpus=4)
        inside, outside = await server.submit(), await server.submit()
        for job, root in ((inside, old / "checkpoints"), (outside, tmp_path / "old" / "checkpoints-2")):
            started = await launcher.next_start()
            assert started.job_id == job.job_id
            checkpoint = write_checkpoint(root / job.job_id, 10)
            checkpoint.uri = scheme + checkpoint.uri
            await launcher.report(started, 1, checkpoints=[checkpoint])
        waiting = await server.submit(init_from={"job_id": inside.job_id})
        await launcher.leave()
    place(old, new)
    async with serving(new) as server:
        (listed,) = (await server.checkpoints.ListCheckpoints(ListCheckpointsRequest(job_id=inside.job_id))).checkpoints
        assert where(listed.uri).is_relative_to(new / "checkpoints")
        call = server.checkpoints.DownloadCheckpoint(
            DownloadCheckpointRequest(job_id=inside.job_id, file_name="model.safetensors")
        )
        assert b"".join([part.chunk async for part in call]) == b"model" * 100
        (other,) = (await server.checkpoints.ListCheckpoints(ListCheckpointsRequest(job_id=outside.job_id))).checkpoints
        assert where(other.uri).is_relative_to(old / "checkpoints-2"), "it only begins alike"
        again = await server.submit(init_from={"job_id": inside.job_id})
        launcher = server.launcher()
        await launcher.be_ready(cpus=8)
        gangs = {job.job_id: job for job in [await launcher.next_start() for _ in range(4)]}
        for job_id in (waiting.job_id, again.job_id):
            assert (where(gangs[job_id].init_from_uri) / "manifest.json").exists()
            assert where(gangs[job_id].init_from_uri).is_relative_to(new)


def test_a_store_that_cannot_note_where_it_was_moved_to_says_so_in_words(tmp_path: Path) -> None:
    async def start_and_stop(folder: Path) -> None:
        async with serving(folder):
            pass

    asyncio.run(start_and_stop(tmp_path / "old"))
    with closing(sqlite3.connect(tmp_path / "old" / "lockstep.db")) as connection:
        connection.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON meta WHEN new.key = 'checkpoint_root' "
            "BEGIN SELECT raise(ABORT, 'no room'); END"
        )
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(StartupError, match=r"new/lockstep\.db cannot be opened: no room; put a good copy in its place"):
        asyncio.run(start_and_stop(tmp_path / "new"))
