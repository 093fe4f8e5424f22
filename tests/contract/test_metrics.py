from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import grpc

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.job_pb2 import JOB_STATE_SUCCEEDED
from lockstep.v1.metrics_service_pb2 import (
    METRIC_KIND_RESULT,
    METRIC_KIND_TIMING,
    ListMetricsRequest,
    MetricPoint,
    StreamMetricsRequest,
)
from tests.support.server import Running, ScriptedLauncher, loss_at, serving, start_job, status_of


def shown(points: list[MetricPoint]) -> list[tuple[str, int, float]]:
    return [(point.name, point.step, point.value) for point in points]


async def test_results_come_before_timings_each_by_step_and_name(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    points = [
        loss_at(2, 0.2),
        loss_at(1, 9.0, "step_seconds", METRIC_KIND_TIMING),
        loss_at(1, 0.1),
        loss_at(1, 0.9, "grad_norm"),
    ]
    await launcher.report(gang, 1, points=points)
    expected = [("grad_norm", 1, 0.9), ("train_loss", 1, 0.1), ("train_loss", 2, 0.2), ("step_seconds", 1, 9.0)]
    response = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
    assert shown(list(response.points)) == expected
    token = ""
    seen: list[Any] = []
    while len(seen) < 4:
        page = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id, page_size=1, page_token=token))
        seen += shown(list(page.points))
        token = page.next_page_token
    assert seen == expected
    assert token == ""
    request = ListMetricsRequest(job_id=gang.job_id, names=["train_loss"], after_step=1, kind=METRIC_KIND_RESULT)
    assert shown(list((await server.metrics.ListMetrics(request)).points)) == [("train_loss", 2, 0.2)]


async def test_values_that_are_no_numbers_reach_the_reader(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1, points=[loss_at(1, math.inf), loss_at(2, math.nan), loss_at(3, -math.inf)])
    response = await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
    assert [repr(point.value) for point in response.points] == ["inf", "nan", "-inf"]


async def test_bad_requests_for_metrics_are_refused(server: Running) -> None:
    _, gang = await start_job(server)
    bad = {
        "page_size": {"page_size": 10_001},
        "after_step": {"after_step": -1},
        "page_token": {"page_token": "xyz"},
        "kind": {"kind": 77},
        "names": {"names": [f"name-{number}" for number in range(1_001)]},
    }
    for field, wrong in bad.items():
        request = ListMetricsRequest(job_id=gang.job_id, **wrong)  # type: ignore[arg-type]
        error = await status_of(server.metrics.ListMetrics(request))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith(field)
    requests: list[Any] = [ListMetricsRequest(job_id="none"), StreamMetricsRequest(job_id="none")]
    for request in requests:
        call = (
            server.metrics.ListMetrics(request)
            if isinstance(request, ListMetricsRequest)
            else server.metrics.StreamMetrics(request).read()
        )
        assert (await status_of(call)).code() is grpc.StatusCode.NOT_FOUND
    error = await status_of(server.metrics.StreamMetrics(StreamMetricsRequest(job_id=gang.job_id, cursor="x")).read())
    assert error.details().startswith("cursor")


async def test_a_stream_shows_what_is_there_then_what_comes_and_ends_with_the_job(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1, points=[loss_at(1, 0.1)])
    responses = aiter(server.metrics.StreamMetrics(StreamMetricsRequest(job_id=gang.job_id)))
    assert shown(list((await anext(responses)).points)) == [("train_loss", 1, 0.1)]
    await launcher.report(gang, 2, points=[loss_at(2, 0.2)])
    assert shown(list((await anext(responses)).points)) == [("train_loss", 2, 0.2)]
    await launcher.finish(gang, 3, points=[loss_at(3, 0.3)])
    rest = [point for response in [r async for r in responses] for point in response.points]
    assert shown(rest) == [("train_loss", 3, 0.3)]


async def test_a_stream_resumes_at_its_cursor_without_loss_or_repetition_also_on_the_next_server(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await launcher.report(gang, 1, points=[loss_at(1, 0.1), loss_at(2, 0.2)])
        response: Any = await server.metrics.StreamMetrics(StreamMetricsRequest(job_id=gang.job_id)).read()
        await launcher.finish(gang, 2, points=[loss_at(3, 0.3)])
        await server.reaches(gang.job_id, JOB_STATE_SUCCEEDED)
    async with serving(tmp_path) as server:
        request = StreamMetricsRequest(job_id=gang.job_id, cursor=response.cursor)
        rest = [point async for r in server.metrics.StreamMetrics(request) for point in r.points]
        assert shown(rest) == [("train_loss", 3, 0.3)]


async def test_more_points_than_a_message_holds_come_whole_and_in_order(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    points = [loss_at(step, step / 7) for step in range(1, 2501)]
    await launcher.finish(gang, 1, points=points)
    request = StreamMetricsRequest(job_id=gang.job_id)
    streamed = [point async for r in server.metrics.StreamMetrics(request) for point in r.points]
    assert streamed == points


async def test_a_shutdown_ends_a_stream_as_unavailable(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.leave()
    call = server.metrics.StreamMetrics(StreamMetricsRequest(job_id=gang.job_id))
    ended = asyncio.ensure_future(status_of(call.read()))
    while not server.parts.notifier.count():
        await server.metrics.ListMetrics(ListMetricsRequest(job_id=gang.job_id))
    await server.application.stop()
    assert (await ended).code() is grpc.StatusCode.UNAVAILABLE
