"""How much one client may ask for, and what a server does when it is asked for more."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.server.rpc.interceptors import MAX_MESSAGE_BYTES
from lockstep.server.rpc.paging import make_token
from lockstep.server.rpc.server import MOST_STREAMS
from lockstep.server.scheduling import scheduler
from lockstep.server.settings import available_memory_bytes
from lockstep.server.store.database import Database
from lockstep.v1.cluster_service_pb2 import GetClusterRequest
from lockstep.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_RUNNING
from lockstep.v1.job_service_pb2 import (
    CancelJobRequest,
    ListJobsRequest,
    PauseJobRequest,
    ResumeJobRequest,
    SubmitJobRequest,
    UpdateJobRequest,
)
from lockstep.v1.metrics_service_pb2 import ListMetricsRequest
from tests.contract.test_followers import statements
from tests.support.server import Running, digits_spec, serving, status_of

_SETTINGS_FRAME = 4
_MAX_CONCURRENT_STREAMS = 3


async def test_a_message_that_is_too_large_is_refused_also_before_it_is_taken_in(server: Running) -> None:
    for size in (MAX_MESSAGE_BYTES + 1, 15 << 20):
        request = SubmitJobRequest(spec=digits_spec(labels={"a": "x" * size}))
        error = await status_of(server.jobs.SubmitJob(request))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    ours = await status_of(
        server.jobs.SubmitJob(SubmitJobRequest(spec=digits_spec(labels={"a": "x" * MAX_MESSAGE_BYTES})))
    )
    assert "allowed: at most 4,194,304" in (ours.details() or "")


async def test_a_connection_has_a_bounded_number_of_calls(server: Running) -> None:
    host, _, port = server.application.grpc_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS_FRAME, 0, 0, 0, 0, 0]))
    settings: dict[int, int] = {}
    while not settings:
        header = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(header[:3], "big"))
        if header[3] == _SETTINGS_FRAME:
            settings = dict(struct.iter_unpack(">HI", payload))
    assert settings[_MAX_CONCURRENT_STREAMS] == MOST_STREAMS
    writer.close()


@pytest.mark.parametrize("name", ["\ud800", "a\udfffb"])
async def test_a_forged_token_with_characters_that_no_text_has_is_refused(server: Running, name: str) -> None:
    job = await server.submit()
    scope = ["metrics", job.job_id, [], 0, 0]
    digest = json.loads(base64.urlsafe_b64decode(make_token([], scope) + "=="))[0]
    token = base64.urlsafe_b64encode(json.dumps([digest, 1, 1, name]).encode()).decode().rstrip("=")
    call = server.metrics.ListMetrics(ListMetricsRequest(job_id=job.job_id, page_token=token))
    error = await status_of(call)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is not one that this server gave out" in (error.details() or "")


async def test_more_workers_than_there_is_memory_for_are_refused(server: Running) -> None:
    most = available_memory_bytes() // (350 << 20)
    assert most < 1_024, "this test needs a machine with less than 350 GiB"
    few = {"workers": 1, "shards": 1_024, "cpus_per_worker": 0.0001}
    training = {"batch_size": 1_024}
    for workers in (1_024, most + 1):
        spec = digits_spec(resources=few | {"workers": workers}, training=training)
        error = await status_of(server.jobs.SubmitJob(SubmitJobRequest(spec=spec)))
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert f"allowed: at most {most:,} workers" in (error.details() or "")
    job = await server.submit(resources=few, training=training)
    error = await status_of(server.jobs.UpdateJob(UpdateJobRequest(job_id=job.job_id, workers=1_024)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"allowed: at most {most:,} workers" in (error.details() or "")
    await server.jobs.UpdateJob(UpdateJobRequest(job_id=job.job_id, workers=most))


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Note each call of a function."""
    calls: list[Any] = []
    original: Callable[..., Any] = getattr(owner, name)

    def note(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, note)
    return calls


async def test_who_comes_behind_a_job_that_waits_is_not_looked_at_until_it_moves(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=2)
    await server.submit(resources={"workers": 1})
    first = await launcher.next_start()
    whole = {"workers": 2, "min_workers": 2}
    waiting = await server.submit(resources=whole)
    await server.cluster.GetCluster(GetClusterRequest())
    looks = counted(monkeypatch, scheduler, "plan")
    behind = [await server.submit(resources={"workers": 1}) for _ in range(20)]
    assert len(looks) <= 1
    await server.jobs.CancelJob(CancelJobRequest(job_id=waiting.job_id))
    assert (await launcher.next_start()).job_id == behind[0].job_id
    waiting = await server.submit(resources=whole)
    for job in behind[1:]:
        await server.jobs.CancelJob(CancelJobRequest(job_id=job.job_id))
    await launcher.gang_stopped(first, "USER_ERROR")
    await server.jobs.CancelJob(CancelJobRequest(job_id=behind[0].job_id))
    assert (await launcher.next_stop()).job_id == behind[0].job_id


async def test_only_the_job_that_has_changed_is_asked_whether_it_can_ever_fit(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = server.launcher()
    await launcher.be_ready(cpus=2)
    jobs = [await server.submit(resources={"workers": 2, "shards": 4}) for _ in range(20)]
    await launcher.next_start()
    from lockstep.server.coordinator import fit_checks

    asked = counted(monkeypatch, fit_checks, "why_it_never_fits")
    await server.jobs.PauseJob(PauseJobRequest(job_id=jobs[5].job_id))
    await server.jobs.ResumeJob(ResumeJobRequest(job_id=jobs[5].job_id))
    await server.jobs.UpdateJob(UpdateJobRequest(job_id=jobs[6].job_id, workers=1))
    await server.cluster.GetCluster(GetClusterRequest())
    await launcher.offer({"node-a": (2, 0)})  # the same as before
    await launcher.offer({"node-a": (1, 0)})  # one worker still fits
    await launcher.offer({"node-a": (0.5, 0)})
    for job in jobs[1:]:
        await server.reaches(job.job_id, JOB_STATE_FAILED)
    assert len(asked) <= 2 + 1 + 2, "jobs that ask for the same are asked once"


async def test_a_restart_asks_the_store_no_question_per_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path) as server:
        for _ in range(50):
            await server.submit()
    reads = counted(monkeypatch, Database, "read")
    async with serving(tmp_path) as server:
        assert len(reads) < 20
        assert len((await server.jobs.ListJobs(ListJobsRequest())).jobs) == 50
        assert (await server.cluster.GetCluster(GetClusterRequest())).jobs_waiting == 50


async def test_a_job_without_weights_of_another_is_stored_without_a_thread_for_its_files(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops = counted(monkeypatch, asyncio, "to_thread")
    with statements(server, "jobs") as noted:
        job = await server.submit()
    assert (hops, noted) == ([], [])
    assert job.state != JOB_STATE_RUNNING
