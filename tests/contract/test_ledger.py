"""Workers tell where their time goes, and users read it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.contract.facts import STEP_BOUNDS_S
from lockstep.v1.internal_service_pb2 import ReportLedgerRequest, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.job_pb2 import JOB_STATE_SUCCEEDED
from lockstep.v1.ledger_pb2 import PhaseSeconds
from lockstep.v1.metrics_service_pb2 import GetLedgerRequest
from tests.support.server import Running, fetch, serving, status_of, violations_of


def account_of(gang: StartGang, of_rank: int, sequence: int, /, **fields: Any) -> ReportLedgerRequest:
    request = ReportLedgerRequest(
        job_id=gang.job_id,
        attempt=gang.attempt,
        number=of_rank,
        rank=of_rank,
        node_id="node-a",
        sequence=sequence,
        seconds=PhaseSeconds(forward_s=8.0, exchange_wait_s=2.0 * of_rank, start_up_s=1.0),
        steps=4,
        examples=400,
        step_duration_counts=[0] * (len(STEP_BOUNDS_S) - 1) + [4, 0],
        step_duration_sum_s=120.0,
        flops_per_step=1e6,
        memory_bytes=1 << 20,
    )
    request.MergeFrom(ReportLedgerRequest(**fields))
    return request


async def report(server: Running, gang: StartGang, request: ReportLedgerRequest, token: str | None = None) -> None:
    metadata = (("lockstep-attempt-token", gang.attempt_token if token is None else token),)
    await InternalServiceStub(server.channel).ReportLedger(request, metadata=metadata)


async def start_job(server: Running) -> StartGang:
    launcher = server.launcher()
    await launcher.be_ready()
    await server.submit()
    gang = await launcher.next_start()
    await launcher.report(gang, 1)
    return gang


async def finish_a_job(server: Running) -> StartGang:
    """A job that has succeeded, and whose worker has told of its time."""
    launcher = server.launcher()
    await launcher.be_ready()
    await server.submit()
    gang = await launcher.next_start()
    await report(server, gang, account_of(gang, 0, 1))
    await launcher.finish(gang, 1)
    await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)
    return gang


async def test_the_ledger_of_a_job_names_the_rank_that_the_others_wait_for(server: Running) -> None:
    gang = await start_job(server)
    for rank in (1, 0):
        request = account_of(gang, rank, 1, steps=40)
        request.step_duration_counts[-2] = 40
        await report(server, gang, request)
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    assert [rank.rank for rank in ledger.ranks] == [0, 1]
    assert (ledger.ranks[1].seconds.forward_s, ledger.ranks[1].seconds.exchange_wait_s) == (8.0, 2.0)
    assert (ledger.ranks[0].node_name, ledger.ranks[0].steps) == ("node-a", 40)
    assert ledger.HasField("straggler_rank")
    assert (ledger.straggler_rank, ledger.flops_per_step) == (0, 1e6)


async def test_a_ledger_is_there_after_the_server_was_started_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        gang = await start_job(server)
        await report(server, gang, account_of(gang, 0, 1))
        before = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    async with serving(tmp_path) as server:
        after = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
        assert after.ranks[0].seconds == before.ranks[0].seconds
        more = [0] * (len(STEP_BOUNDS_S) - 1) + [6, 0]
        request = account_of(gang, 0, 2, steps=6)
        request.step_duration_counts[:] = more
        await report(server, gang, request)
        again = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
        assert (again.ranks[0].steps, again.ranks[0].seconds) == (6, before.ranks[0].seconds)


async def test_of_a_job_without_workers_there_is_an_empty_ledger_and_of_none_there_is_an_error(server: Running) -> None:
    job = await server.submit()
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=job.job_id))
    assert not ledger.ranks
    assert not ledger.HasField("straggler_rank")
    error = await status_of(server.metrics.GetLedger(GetLedgerRequest(job_id="job-none")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    error = await status_of(server.metrics.GetLedger(GetLedgerRequest()))
    assert violations_of(error).keys() == {"job_id"}


async def test_prometheus_sees_what_the_workers_account_for(server: Running) -> None:
    gang = await start_job(server)
    for rank in (0, 1):
        await report(server, gang, account_of(gang, rank, 1))
    job = f'job_id="{gang.job_id}"'
    text = (await fetch(server.application.http_address, "/metrics"))[1]
    for line in (
        f'lockstep_phase_seconds_total{{{job},phase="exchange_wait",rank="1"}} 2.0',
        f'lockstep_worker_seconds_total{{cause="productive",{job}}} 18.0',
        f'lockstep_worker_seconds_total{{cause="start_up",{job}}} 2.0',
        f"lockstep_steps_total{{{job}}} 4.0",
        f"lockstep_samples_total{{{job}}} 400.0",
        f'lockstep_step_duration_seconds_bucket{{{job},le="60.0"}} 4.0',
        f'lockstep_step_duration_seconds_bucket{{{job},le="30.0"}} 0.0',
        f"lockstep_step_duration_seconds_sum{{{job}}} 120.0",
        f'lockstep_worker_info{{device="cpu",{job},node="node-a",rank="1"}} 1.0',
        f"lockstep_job_flops_per_step{{{job}}} 1e+06",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rank": -1}, "rank"),
        ({"rank": 10**6}, "rank"),
        ({"seconds": PhaseSeconds(data_s=math.nan)}, "seconds.data_s"),
        ({"seconds": PhaseSeconds(data_s=-1.0)}, "seconds.data_s"),
        ({"cpu_seconds": math.inf}, "cpu_seconds"),
        ({"step_duration_counts": [1]}, "step_duration_counts"),
        ({"steps": 5}, "step_duration_counts"),  # of which four are counted
        ({"under_way": PhaseSeconds(forward_s=8.5)}, "under_way.forward_s"),  # of 8
        ({"under_way": PhaseSeconds(data_s=-1.0)}, "under_way.data_s"),
        ({"node_id": "x" * 1000}, "node_id"),
    ],
)
async def test_an_account_that_no_worker_of_ours_sends_is_refused(
    server: Running, fields: dict[str, Any], field: str
) -> None:
    gang = await start_job(server)
    request = account_of(gang, 0, 1)
    for name, value in fields.items():
        if name in ("seconds", "under_way"):
            getattr(request, name).CopyFrom(value)
        elif name == "step_duration_counts":
            request.step_duration_counts[:] = value
        else:
            setattr(request, name, value)
    error = await status_of(report(server, gang, request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert violations_of(error).keys() == {field}
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    assert not ledger.ranks


async def test_an_account_needs_the_token_of_its_attempt(server: Running) -> None:
    gang = await start_job(server)
    error = await status_of(report(server, gang, account_of(gang, 0, 1), token="wrong"))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_counters_go_on_where_they_were_when_the_server_was_started_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        gang = await start_job(server)
        await report(server, gang, account_of(gang, 0, 1))
    name = f'lockstep_worker_seconds_total{{cause="productive",job_id="{gang.job_id}"}}'
    async with serving(tmp_path) as server:
        # What was stored may be less than what was told before a crash; the worker knows all of it.
        assert name not in (await fetch(server.application.http_address, "/metrics"))[1]
        await report(server, gang, account_of(gang, 0, 2))
        assert f"{name} 8.0" in (await fetch(server.application.http_address, "/metrics"))[1]


async def test_of_a_job_whose_workers_have_said_nothing_no_time_is_told(server: Running) -> None:
    gang = await start_job(server)
    page = (await fetch(server.application.http_address, "/metrics"))[1]
    assert f'lockstep_job_info{{data="builtin",device="cpu",job_id="{gang.job_id}"' in page
    assert "lockstep_worker_seconds_total{" not in page


async def test_a_job_that_ended_long_ago_is_told_of_no_more_and_its_ledger_is_in_the_store(server: Running) -> None:
    gang = await finish_a_job(server)
    parts = server.parts
    await parts.ledgers.store_all()
    for minutes, is_told_of in ((10, True), (20, False)):
        await parts.coordinator.tidy(datetime.now(UTC) + timedelta(minutes=minutes))
        page = (await fetch(server.application.http_address, "/metrics"))[1]
        assert (f'lockstep_steps_total{{job_id="{gang.job_id}"}}' in page) == is_told_of
        assert (gang.job_id in parts.ledgers.newest()) == is_told_of
    ledger = await server.metrics.GetLedger(GetLedgerRequest(job_id=gang.job_id))
    assert ledger.ranks[0].steps == 4


async def test_counters_of_a_job_without_workers_go_on_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        gang = await finish_a_job(server)
    line = f'lockstep_worker_seconds_total{{cause="productive",job_id="{gang.job_id}"}} 8.0'
    async with serving(tmp_path) as server:
        assert line in (await fetch(server.application.http_address, "/metrics"))[1]
