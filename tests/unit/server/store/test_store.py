from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event, text

from lockstep.server.errors import AlreadyExists
from lockstep.server.jobs.job import Job, Progress, State
from lockstep.server.jobs.records import Status, StoredCheckpoint, StoredFile, StoredPoint
from lockstep.server.store import JobFilter, NewJob, Store, StoreError
from lockstep.server.store.dialect import writing_engine
from lockstep.server.store.schema import migrate
from lockstep.server.store.tables import metadata
from lockstep.v1.job_pb2 import JobResult
from tests.support.server import digits_spec

NOW = datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@asynccontextmanager
async def open_store(folder: Path) -> AsyncIterator[Store]:
    store = Store(folder / "lockstep.db")
    try:
        yield store
    finally:
        store.close()


def new_job(job_id: str, request_id: str = "", digest: str = "d", **labels: str) -> NewJob:
    job = Job(
        job_id=job_id,
        number=0,
        spec=digits_spec(name=job_id, labels=labels),
        state=State.QUEUED,
        state_reason="waits",
        create_time=NOW,
        engine_version="1",
        curve_digest="c",
    )
    return NewJob(job, request_id, digest)


def point(step: int, value: float, name: str = "train_loss", kind: int = 1) -> StoredPoint:
    return StoredPoint(name, step, step / 10, value, kind)


async def test_a_stored_job_is_read_back_as_it_was_also_by_the_next_process(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a", team="x"))
        job = replace(
            job,
            state=State.SUCCEEDED,
            attempt=2,
            start_time=NOW,
            end_time=NOW,
            progress=Progress(5, 9, 0.5),
            result=JobResult(weights_digest="w", final_metrics={"train_loss": math.nan}),
            hardware_class="cpu",
            heals=3,
            generation=4,
            sequence=5,
        )
        job = (await store.jobs.save(job, messages=["done"], now=NOW)).job
    async with open_store(tmp_path) as store:
        assert repr(await store.jobs.get_job("job-a")) == repr(job)
        events = await store.jobs.list_events("job-a", after=0, up_to=99, limit=99)
        assert [(e.sequence, e.message, e.state) for e in events] == [
            (1, "submitted", State.QUEUED),
            (2, "done", State.SUCCEEDED),
        ]


def checkpoint(step: int, uri: str = "/c") -> StoredCheckpoint:
    return StoredCheckpoint("job-a", step, f"{uri}/{step}", NOW, "w", (StoredFile("model.safetensors", 5, "f" * 64),))


async def test_checkpoints_come_and_go_with_the_job_that_wrote_them(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a"))
        await store.jobs.submit(new_job("job-b"))
        assert await store.checkpoints.get_checkpoint("job-a", None) is None
        job = (await store.jobs.save(job, now=NOW, status=Status(checkpoints=[checkpoint(1), checkpoint(2)]))).job
        await store.jobs.save(job, now=NOW, status=Status(points=[point(1, 0.5)]))
        assert await store.checkpoints.get_checkpoint("job-a", None) == checkpoint(2)
        for steps in ((2, 3, 4), (1, 2)):
            status = Status(checkpoints=[checkpoint(step, "/again" if step == 1 else "/c") for step in steps])
            job = (await store.jobs.save(job, now=NOW, status=status)).job
    async with open_store(tmp_path) as store:
        listed = await store.checkpoints.list_checkpoints("job-a", before=None, limit=9, make=list)
        assert listed == [checkpoint(2), checkpoint(1, "/again")]
        assert await store.checkpoints.list_checkpoints("job-a", before=2, limit=9, make=list) == listed[1:]
        assert await store.checkpoints.get_checkpoint("job-a", None) == checkpoint(2)
        assert await store.checkpoints.get_checkpoint("job-a", 3) is None
        assert [(job.job_id, job.newest_checkpoint) for job in await store.jobs.live_jobs()] == [
            ("job-a", 2),
            ("job-b", None),
        ]
        await store.jobs.save(job, now=NOW, status=Status(checkpoints=[]))
        stored = await store.jobs.get_job("job-a")
        assert stored is not None
        assert stored.newest_checkpoint is None


async def test_a_spec_is_written_again_only_when_it_has_changed(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a"))
        changed = replace(job, spec=digits_spec(name="job-a", resources={"workers": 3}))
        for writes_spec, spec in ((False, job.spec), (True, changed.spec)):
            await store.jobs.save(changed, now=NOW, writes_spec=writes_spec)
            stored = await store.jobs.get_job("job-a")
            assert stored is not None
            assert stored.spec == spec


async def test_each_opening_is_a_new_epoch_of_the_same_instance(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        first = (store.cluster.instance_id, store.cluster.epoch)
    async with open_store(tmp_path) as store:
        assert (store.cluster.instance_id, store.cluster.epoch) == (first[0], first[1] + 1)


async def test_writes_that_come_together_share_a_commit(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        commits = 0

        def count(connection: Connection) -> None:
            nonlocal commits
            commits += 1

        event.listen(store.database._writing, "commit", count)
        results = await asyncio.gather(*(store.jobs.submit(new_job(f"job-{i}")) for i in range(200)))
        assert sorted(job.number for job, _ in results) == list(range(1, 201))
        assert commits < 100


async def test_a_write_that_fails_hurts_none_of_its_neighbours(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.jobs.submit(new_job("job-0"))
        outcomes = await asyncio.gather(
            *(store.jobs.submit(new_job(f"job-{i % 3}")) for i in range(6)), return_exceptions=True
        )
        assert [isinstance(outcome, Exception) for outcome in outcomes] == [True, False, False, True, True, True]
        jobs = await store.jobs.list_jobs(before=None, limit=9, make=list)
        assert [job.job_id for job in jobs] == ["job-2", "job-1", "job-0"]


async def test_the_same_request_gives_the_same_job_and_another_spec_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        outcomes = await asyncio.gather(*(store.jobs.submit(new_job(f"job-{i}", "key")) for i in range(5)))
        assert {job.job_id for job, _ in outcomes} == {"job-0"}
        assert [is_new for _, is_new in outcomes] == [True, False, False, False, False]
        with pytest.raises(AlreadyExists, match="job-0"):
            await store.jobs.submit(new_job("job-9", "key", digest="other"))
        assert await store.jobs.get_job("job-9") is None


@pytest.mark.parametrize("value", [0.1, -1e300, 5e-324, math.inf, -math.inf, math.nan, 0.1 + 0.2])
async def test_every_double_survives(tmp_path: Path, value: float) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a"))
        await store.jobs.save(job, now=NOW, status=Status(points=[point(1, value)]))
        [stored] = await store.metrics.new_points("job-a", names=[], kind=0, after_seq=0, limit=9, make=list)
        assert repr(stored.value) == repr(value)


async def test_a_point_is_stored_once_however_often_it_comes(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a"))
        points = [point(1, 0.5), point(2, math.nan), point(1, 9.0, "step_seconds", 2)]
        for _ in range(2):
            saved = await store.jobs.save(job, now=NOW, status=Status(points=points))
            assert saved.disagreements == ()
        again = [*points[:2], point(1, 8.0, "step_seconds", 2), point(3, 0.25)]
        assert (await store.jobs.save(job, now=NOW, status=Status(points=again))).disagreements == ()
        stored = await store.metrics.list_points(
            "job-a", names=[], kind=0, after_step=0, after=None, limit=9, make=list
        )
        assert [(p.name, p.step, repr(p.value)) for p in stored] == [
            ("train_loss", 1, "0.5"),
            ("train_loss", 2, "nan"),
            ("train_loss", 3, "0.25"),
            ("step_seconds", 1, "9.0"),
        ]


async def test_a_result_that_comes_again_with_another_value_is_told_and_not_taken(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        job, _ = await store.jobs.submit(new_job("job-a"))
        await store.jobs.save(job, now=NOW, status=Status(points=[point(1, 0.5)]))
        saved = await store.jobs.save(
            job, now=NOW, status=Status(points=[point(1, 0.5000001), point(2, 0.4)]), messages=["end"]
        )
        assert len(saved.disagreements) == 1
        [stored, _] = await store.metrics.new_points("job-a", names=[], kind=0, after_seq=0, limit=9, make=list)
        assert stored.value == 0.5
        events = await store.jobs.list_events("job-a", after=1, up_to=saved.job.event_count, limit=9)
        assert "THE CURVE DIFFERS: train_loss at step 1 was 0.5" in events[0].message
        assert events[1].message == "end"


async def test_jobs_are_found_by_state_and_labels(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        for number in range(6):
            job, _ = await store.jobs.submit(new_job(f"job-{number}", team="ab"[number % 2], all="1"))
            if number < 3:
                await store.jobs.save(replace(job, state=State.FAILED), now=NOW)
        of_b = JobFilter(labels={"team": "b", "all": "1"})
        found = await store.jobs.list_jobs(before=None, limit=9, which=of_b, make=list)
        assert [job.job_id for job in found] == ["job-5", "job-3", "job-1"]
        assert await store.jobs.count_jobs(of_b) == 3
        found = await store.jobs.list_jobs(before=3, limit=1, which=JobFilter(states=(State.FAILED,)), make=list)
        assert [job.job_id for job in found] == ["job-1"]
        assert [job.job_id for job in await store.jobs.live_jobs()] == ["job-3", "job-4", "job-5"]
        assert await store.jobs.count_by_state() == {State.FAILED: 3, State.QUEUED: 3}


async def test_the_migrations_make_the_tables_that_the_code_knows(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        assert await store.database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []


async def test_a_store_of_the_version_before_keeps_its_jobs(tmp_path: Path) -> None:
    engine = writing_engine(tmp_path / "lockstep.db")
    migrate(engine, "0001")
    spec = digits_spec(name="old").SerializeToString()
    row = {"job_id": "job-old", "name": "old", "state": "RUNNING", "state_reason": "training", "attempt": 2}
    row |= {"restarts": 1, "placement_failures": 0, "create_time": 0, "step": 7, "total_steps": 9, "epoch": 0.5}
    row |= {"spec": spec, "hardware_class": "cpu", "engine_version": "1", "curve_digest": "c", "event_count": 0}
    with engine.begin() as connection:
        columns = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        connection.execute(text(f"INSERT INTO jobs ({columns}) VALUES ({values})"), row)
    engine.dispose()

    async with open_store(tmp_path) as store:
        assert await store.database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []
        [job] = await store.jobs.live_jobs()
        assert (job.job_id, job.attempt, job.restarts, job.progress) == ("job-old", 2, 1, Progress(7, 9, 0.5))
        assert (job.heals, job.generation, job.sequence, job.newest_checkpoint) == (0, 0, 0, None)
        saved = await store.jobs.save(replace(job, heals=2), now=NOW, messages=["healed"])
        assert await store.jobs.get_job("job-old") == saved.job


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "lockstep.db").close()
    connection = sqlite3.connect(tmp_path / "lockstep.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="newer Lockstep"):
        Store(tmp_path / "lockstep.db")


def test_a_file_that_is_no_database_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "lockstep.db").write_bytes(b"hello" * 1000)
    with pytest.raises(StoreError, match=r"cannot be opened: file is not a database; .*another --data-dir"):
        Store(tmp_path / "lockstep.db")


async def test_commits_are_synchronous_and_readers_cannot_write(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        with store.database._writing.connect() as connection:
            pragmas = ("synchronous", "journal_mode", "foreign_keys")
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in pragmas]
            assert values == [2, "wal", 1]
        with pytest.raises(Exception, match="readonly"):
            await store.database.read(lambda c: c.exec_driver_sql("DELETE FROM jobs"))


async def test_a_closed_store_refuses_writes(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        pass
    with pytest.raises(StoreError, match="closed"):
        await store.jobs.submit(new_job("job-a"))
