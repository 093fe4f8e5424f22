"""What a small store holds, and the dump of one: each released revision of the tables keeps a dump of its own.

    python -m tests.support.sample_store tests/unit/server/store/dumps/REVISION.db.gz

writes the dump with the code as it is. It is made once, by the code that is released, and never again.
"""

from __future__ import annotations

import asyncio
import gzip
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from lockstep.server.jobs.job import Job, Progress, State
from lockstep.server.jobs.records import NOTHING_NEW, Status, StoredCheckpoint, StoredEvent, StoredFile, StoredPoint
from lockstep.server.jobs.timeline import Timeline
from lockstep.server.store import NewJob, Store
from lockstep.v1.job_pb2 import JobError, JobResult
from lockstep.v1.job_spec_pb2 import JobSpec

START = datetime(2026, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
CHECKPOINT_ROOT = "/srv/lockstep-data/checkpoints"


def after(seconds: float) -> datetime:
    """Return a time of the sample."""
    return START + timedelta(seconds=seconds)


@dataclass(frozen=True)
class Saving:
    """One save of a job: what has changed of it, and what comes with that."""

    now: datetime
    changes: Mapping[str, Any]
    messages: Sequence[str] = ()
    status: Status = NOTHING_NEW
    writes_spec: bool = False


@dataclass(frozen=True)
class Sample:
    """A job from its submit on; `ledger` is empty when there is none."""

    submitted: Job
    request_id: str = ""
    savings: Sequence[Saving] = ()
    ledger: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job as it is read in the end; its number is the store's."""
        job = replace(self.submitted, event_count=len(self.events))
        for saving in self.savings:
            job = replace(job, **saving.changes)
        kept = self.checkpoints
        return replace(job, newest_checkpoint=kept[-1].step if kept else None)

    @property
    def events(self) -> list[StoredEvent]:
        """Its log."""
        job = self.submitted
        found = [StoredEvent(1, job.create_time, job.state, 0, "submitted")]
        for saving in self.savings:
            job = replace(job, **saving.changes)
            for message in saving.messages:
                found.append(StoredEvent(len(found) + 1, saving.now, job.state, job.attempt, message))
        return found

    @property
    def points(self) -> list[StoredPoint]:
        """All of its points; `seq` is the store's."""
        return [point for saving in self.savings for point in saving.status.points]

    @property
    def checkpoints(self) -> Sequence[StoredCheckpoint]:
        """Those that are kept, oldest first."""
        told = [saving.status.checkpoints for saving in self.savings if saving.status.checkpoints is not None]
        return told[-1] if told else ()


def _job(job_id: str, created_s: float, **spec: Any) -> Job:
    text: dict[str, Any] = {
        "name": job_id.removeprefix("job-"),
        "model": {"mlp": {"hidden_units": [32]}},
        "data": {"builtin": {"name": "digits"}},
        "optimizer": {"sgd": {"learning_rate": 0.1}},
        "training": {"max_epochs": 3, "batch_size": 64, "seed": 7},
        "resources": {"workers": 2, "min_workers": 1, "shards": 4},
    }
    return Job(
        job_id=job_id,
        number=0,
        spec=json_format.ParseDict(text | spec, JobSpec()),
        state=State.QUEUED,
        state_reason="waits for resources",
        create_time=after(created_s),
        engine_version="1",
        curve_digest="c0" * 32,
    )


def _checkpoint(job_id: str, step: int, seconds: float) -> StoredCheckpoint:
    files = (StoredFile("model.safetensors", 9_001, "f0" * 32), StoredFile("state.pt", 77, "0f" * 32))
    return StoredCheckpoint(job_id, step, f"{CHECKPOINT_ROOT}/{job_id}/step-{step}", after(seconds), "d1" * 32, files)


def _points(steps: range) -> list[StoredPoint]:
    losses = [StoredPoint("train_loss", step, step / 30, 1 / (step + 3), 1) for step in steps]
    return [*losses, StoredPoint("step_seconds", steps[-1], steps[-1] / 30, 0.0123, 2)]


_STRANGE_VALUES = [math.nan, math.inf, -math.inf, 5e-324, -1e300, 0.1 + 0.2]
_RUNNING: dict[str, Any] = {"state": State.RUNNING, "state_reason": "trains", "attempt": 1}

SUCCEEDED = Sample(
    _job("job-succeeded", 0, labels={"team": "vision", "note": "a: b, ü"}),
    "request-1",
    [
        Saving(
            after(2),
            {"state": State.STARTING, "state_reason": "workers start", "attempt": 1},
            ["admitted to node-a, node-b"],
        ),
        Saving(
            after(4.000001),
            _RUNNING
            | {
                "start_time": after(4),
                "hardware_class": "cpu AVX2 GenuineIntel, torch 2.13.0+cpu",
                "progress": Progress(10, 90, 10 / 30),
                "timeline": Timeline(admitted=after(2), placed=after(3), data_ready=after(3.2), first_step=after(4)),
                "generation": 1,
                "sequence": 3,
                "heals": 1,
            },
            ["trains on 2 workers", "healed: rank 1 was lost, and 1 worker went on"],
            Status(_points(range(1, 11)), [_checkpoint("job-succeeded", 10, 4)]),
        ),
        Saving(
            after(60),
            {
                "state": State.SUCCEEDED,
                "state_reason": "all steps are done",
                "end_time": after(60),
                "progress": Progress(90, 90, 3.0),
                "generation": 2,
                "sequence": 41,
                "result": JobResult(weights_digest="d1" * 32, final_metrics={"train_loss": 0.25, "odd": math.nan}),
            },
            ["succeeded"],
            Status(
                [
                    *_points(range(11, 91, 10)),
                    *(StoredPoint("odd", step, 0.5, value, 1) for step, value in enumerate(_STRANGE_VALUES)),
                    StoredPoint("validation_loss", 90, math.nan, 0.5, 1),
                ],
                [_checkpoint("job-succeeded", 60, 40), _checkpoint("job-succeeded", 90, 59.5)],
            ),
        ),
    ],
    {"ranks": {"0": {"seconds": [1.5, 0.25, 0.0], "steps": 90}, "1": {"seconds": [1e-9]}}, "workers": [], "flops": 1e9},
)
FAILED = Sample(
    _job("job-failed", 0.5, labels={"team": "vision"}),
    savings=[
        Saving(
            after(8),
            {
                "state": State.FAILED,
                "state_reason": "DATA_INVALID",
                "attempt": 3,
                "restarts": 2,
                "placement_failures": 1,
                "end_time": after(8),
                "error": JobError(reason="DATA_INVALID", message="no file.", field="data.idx.root", rank=0),
            },
            ["failed: no file."],
        )
    ],
)
CANCELLED = Sample(
    _job("job-cancelled", 1),
    savings=[Saving(after(9), {"state": State.CANCELLED, "end_time": after(9)}, ["cancelled"])],
)
PAUSED = Sample(
    _job("job-paused", 2),
    savings=[
        Saving(
            after(20),
            {"state": State.PAUSED, "state_reason": "paused", "attempt": 1, "progress": Progress(5, 90, 5 / 30)},
            ["paused"],
            Status(_points(range(1, 6)), [_checkpoint("job-paused", 5, 19)]),
        )
    ],
    ledger={"ranks": {}, "workers": [], "flops": 0.0},
)
RUNNING = Sample(
    replace(
        _job("job-running", 3, init_from={"job_id": "job-succeeded"}),
        init_from_uri=f"{CHECKPOINT_ROOT}/job-running/init-from",
    ),
    "request-2",
    [
        Saving(
            after(30), {"spec": _job("job-running", 3, resources={"workers": 4}).spec}, ["4 workers"], Status(), True
        ),
        Saving(after(31), _RUNNING | {"start_time": after(31)}, ["trains on 4 workers"], Status(_points(range(1, 3)))),
    ],
)
QUEUED = Sample(_job("job-queued", 4), "request-3")

SAMPLES = (SUCCEEDED, FAILED, CANCELLED, PAUSED, RUNNING, QUEUED)


async def fill(store: Store) -> None:
    """Write the samples, as the server does: all submits, then what became of them."""
    store.cluster.follow_checkpoint_root(CHECKPOINT_ROOT)
    for sample in SAMPLES:
        await store.jobs.submit(NewJob(sample.submitted, sample.request_id, "5d" * 32))
    for sample in SAMPLES:
        job = await store.jobs.get_job(sample.submitted.job_id)
        assert job is not None
        for saving in sample.savings:
            saved = await store.jobs.save(
                replace(job, **saving.changes),
                messages=saving.messages,
                now=saving.now,
                status=saving.status,
                writes_spec=saving.writes_spec,
            )
            job = saved.job
    await store.ledgers.save_ledgers({sample.submitted.job_id: sample.ledger for sample in SAMPLES if sample.ledger})


def dump(path: Path) -> bytes:
    """Return the file of a store that nobody has open, compressed."""
    return gzip.compress(path.read_bytes(), mtime=0)


def restore(dumped: bytes, path: Path) -> None:
    """Make the file again."""
    path.write_bytes(gzip.decompress(dumped))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "lockstep.db")
        try:
            asyncio.run(fill(store))
        finally:
            store.close()
        Path(sys.argv[1]).write_bytes(dump(Path(folder) / "lockstep.db"))


if __name__ == "__main__":
    main()
