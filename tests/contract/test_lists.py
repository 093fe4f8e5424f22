"""Jobs are listed by pages and found by states, labels, names and the beginning of their ids."""

from __future__ import annotations

import grpc
import pytest

from lockstep.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED
from lockstep.v1.job_service_pb2 import ListJobsRequest, SubmitJobRequest
from tests.support.server import Running, digits_spec, fetch, status_of, violations_of


async def test_pages_show_every_job_once_newest_first(server: Running) -> None:
    made = [(await server.submit(labels={"n": str(i % 2)})).job_id for i in range(7)]
    seen, token = [], ""
    while True:
        page = await server.jobs.ListJobs(ListJobsRequest(page_size=3, page_token=token))
        seen += [job.job_id for job in page.jobs]
        token = page.next_page_token
        if not token:
            break
        await server.submit()  # What comes meanwhile does not disturb the pages.
    assert seen == made[::-1]
    odd = await server.jobs.ListJobs(ListJobsRequest(labels={"n": "1"}, states=[JOB_STATE_QUEUED]))
    assert [job.job_id for job in odd.jobs] == made[1::2][::-1]
    assert not (await server.jobs.ListJobs(ListJobsRequest(states=[JOB_STATE_FAILED]))).jobs


async def test_jobs_are_found_by_name_and_by_the_beginning_of_their_id_and_are_counted_with_the_first_page(
    server: Running,
) -> None:
    made = [await server.submit(name=f"run-{i % 2}") for i in range(7)]
    page = await server.jobs.ListJobs(ListJobsRequest(name="run-1"))
    assert [job.job_id for job in page.jobs] == [job.job_id for job in made[1::2]][::-1]
    assert page.total_size == 3
    page = await server.jobs.ListJobs(ListJobsRequest(job_id_prefix=made[4].job_id[:-1], name="run-0"))
    assert made[4].job_id in [job.job_id for job in page.jobs]
    assert all(job.job_id.startswith(made[4].job_id[:-1]) for job in page.jobs)
    # A character that stands for any other in SQL stands for itself here.
    assert not (await server.jobs.ListJobs(ListJobsRequest(job_id_prefix="job_"))).jobs
    first = await server.jobs.ListJobs(ListJobsRequest(job_id_prefix="job-", page_size=5))
    assert (len(first.jobs), first.total_size) == (5, 7)
    request = ListJobsRequest(job_id_prefix="job-", page_size=5, page_token=first.next_page_token)
    rest = await server.jobs.ListJobs(request)
    assert (len(rest.jobs), rest.total_size) == (2, 0)


async def test_a_job_belongs_to_who_submitted_it_for_lists_workers_metrics_and_repeated_calls(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SubmitJobRequest(spec=digits_spec(), request_id="1")
    of_local = await server.jobs.SubmitJob(request)
    monkeypatch.setattr("lockstep.server.rpc.job_service.PRINCIPAL", "ann")
    of_ann = await server.jobs.SubmitJob(request)
    assert (of_local.owner, of_ann.owner) == ("local", "ann")
    assert (await server.jobs.SubmitJob(request)).job_id == of_ann.job_id != of_local.job_id
    for job in (of_local, of_ann):
        page = await server.jobs.ListJobs(ListJobsRequest(owner=job.owner))
        assert ([found.job_id for found in page.jobs], page.total_size) == ([job.job_id], 1)
    assert not (await server.jobs.ListJobs(ListJobsRequest(owner="eve"))).jobs

    launcher = server.launcher()
    await launcher.be_ready(cpus=2)
    gangs = [await launcher.next_start() for _ in range(2)]
    assert {gang.job_id: gang.owner for gang in gangs} == {of_local.job_id: "local", of_ann.job_id: "ann"}
    page_of_metrics = (await fetch(server.application.http_address, "/metrics"))[1]
    for job in (of_local, of_ann):
        facts = f'job_id="{job.job_id}",model="mlp",name="{job.spec.name}",owner="{job.owner}"'
        assert facts in page_of_metrics


async def test_bad_pages_are_refused_by_the_fields_name(server: Running) -> None:
    for _ in range(2):
        await server.submit()
    token = (await server.jobs.ListJobs(ListJobsRequest(page_size=1))).next_page_token
    bad = {
        "page_size": [ListJobsRequest(page_size=-1), ListJobsRequest(page_size=1001)],
        "page_token": [
            ListJobsRequest(page_token="x"),
            ListJobsRequest(page_token="\u00e4"),
            ListJobsRequest(page_token="W10"),
            ListJobsRequest(page_token=token, labels={"other": "filter"}),
            ListJobsRequest(page_token=token, name="other"),
            ListJobsRequest(page_token=token, owner="other"),
        ],
        "states": [ListJobsRequest(states=[0]), ListJobsRequest(states=[99])],  # type: ignore[list-item]
        "labels": [ListJobsRequest(labels={f"key-{number}": "x" for number in range(65)})],
        "job_id_prefix": [ListJobsRequest(job_id_prefix="j" * 65)],
        "name": [ListJobsRequest(name="n" * 64)],
        "owner": [ListJobsRequest(owner="o" * 129)],
    }
    assert not (await server.jobs.ListJobs(ListJobsRequest(states=[JOB_STATE_FAILED] * 1_000_000))).jobs
    for field, requests in bad.items():
        for request in requests:
            error = await status_of(server.jobs.ListJobs(request))
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert set(violations_of(error)) == {field}
