"""A store that an earlier version has left opens with all that is in it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from lockstep.server.store import Store
from lockstep.server.store.tables import metadata
from tests.support.sample_store import CHECKPOINT_ROOT, SAMPLES, restore

DUMPS = sorted((Path(__file__).parent / "dumps").glob("*.db.gz"))


@pytest.fixture(params=DUMPS, ids=[path.name.partition(".")[0] for path in DUMPS])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    restore(request.param.read_bytes(), tmp_path / "lockstep.db")
    store = Store(tmp_path / "lockstep.db")
    try:
        yield store
    finally:
        store.close()


async def test_its_tables_are_those_of_today(store: Store) -> None:
    assert await store.database.read(lambda c: compare_metadata(MigrationContext.configure(c), metadata)) == []


async def test_its_jobs_are_as_they_were(store: Store) -> None:
    jobs = await store.jobs.list_jobs(before=None, limit=99, make=list)
    expected = [replace(sample.job, number=number) for number, sample in enumerate(SAMPLES, 1)]
    assert list(map(repr, reversed(jobs))) == list(map(repr, expected))  # by repr: a metric is NaN
    assert [job.job_id for job in await store.jobs.live_jobs()] == ["job-paused", "job-running", "job-queued"]


async def test_their_events_points_checkpoints_and_ledgers_are_as_they_were(store: Store) -> None:
    for sample in SAMPLES:
        job_id = sample.submitted.job_id
        assert await store.jobs.list_events(job_id, after=0, up_to=99, limit=99) == sample.events
        points = await store.metrics.new_points(job_id, names=[], kind=0, after_seq=0, limit=99, make=list)
        assert [repr(replace(point, seq=0)) for point in points] == list(map(repr, sample.points))
        checkpoints = await store.checkpoints.list_checkpoints(job_id, before=None, limit=99, make=list)
        assert checkpoints == list(reversed(sample.checkpoints))
    ledgers = {sample.submitted.job_id: sample.ledger for sample in SAMPLES if sample.ledger}
    assert await store.ledgers.load_ledgers(sample.submitted.job_id for sample in SAMPLES) == ledgers


async def test_a_call_that_is_repeated_finds_the_job_that_it_made(store: Store) -> None:
    for sample in SAMPLES:
        if sample.request_id:
            found = await store.jobs.find_request("local", sample.request_id, "5d" * 32)
            assert found is not None
            assert found.job_id == sample.submitted.job_id


def test_it_is_the_same_instance_in_its_next_epoch_with_its_checkpoint_root(tmp_path: Path) -> None:
    for dump in DUMPS:
        restore(dump.read_bytes(), tmp_path / dump.stem)
        with sqlite3.connect(tmp_path / dump.stem) as connection:
            before = dict(connection.execute("SELECT key, value FROM meta"))
        connection.close()
        store = Store(tmp_path / dump.stem)
        try:
            assert (store.cluster.instance_id, store.cluster.epoch) == (before["instance_id"], int(before["epoch"]) + 1)
            assert store.cluster.follow_checkpoint_root(CHECKPOINT_ROOT) == ""
        finally:
            store.close()
