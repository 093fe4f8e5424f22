"""Many followers of one job: each sees everything, and what they ask for is read once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event

from lockstep.v1.internal_service_pb2 import ReportLogsRequest, StartGang
from lockstep.v1.job_service_pb2 import WatchJobRequest
from lockstep.v1.log_service_pb2 import LogLine, StreamLogsRequest
from lockstep.v1.log_service_pb2_grpc import LogServiceStub
from lockstep.v1.metrics_service_pb2 import StreamMetricsRequest
from tests.support.server import Running, ScriptedLauncher, loss_at

FOLLOWERS = 100
REPORTS = 5


@contextmanager
def statements(server: Running, table: str) -> Iterator[list[str]]:
    """Note the queries of a table."""
    noted: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if f"FROM {table}" in statement:
            noted.append(statement)

    engine = server.parts.store.database._reading
    event.listen(engine, "before_cursor_execute", note)
    yield noted
    event.remove(engine, "before_cursor_execute", note)


class Followers:
    """Streams that are read all the time, and a count of what each has seen."""

    def __init__(self, calls: list[Any], count: Any) -> None:
        self.seen = [0] * len(calls)
        self._changed = asyncio.Condition()
        self._tasks = [asyncio.create_task(self._follow(i, call, count)) for i, call in enumerate(calls)]

    async def _follow(self, number: int, call: Any, count: Any) -> None:
        async for response in call:
            async with self._changed:
                self.seen[number] += count(response)
                self._changed.notify_all()

    async def have_seen(self, count: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: min(self.seen) >= count)

    async def end(self) -> None:
        await asyncio.gather(*self._tasks)


async def test_each_report_is_read_once_for_all_followers_of_the_curve(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1, points=[loss_at(1, 0.1)])
    request = StreamMetricsRequest(job_id=gang.job_id)
    calls = [server.metrics.StreamMetrics(request) for _ in range(FOLLOWERS)]
    followers = Followers(calls, lambda response: len(response.points))
    await followers.have_seen(1)
    with statements(server, "metric_points") as noted:
        for number in range(2, REPORTS + 2):
            await launcher.report(gang, number, points=[loss_at(number, 0.1)])
            await followers.have_seen(number)
    assert REPORTS <= len(noted) <= 3 * REPORTS
    with statements(server, "metric_points") as noted, statements(server, "jobs") as jobs:
        await launcher.finish(gang, REPORTS + 2)
        await followers.end()
    assert len(noted) + len(jobs) < FOLLOWERS / 2
    assert followers.seen == [REPORTS + 1] * FOLLOWERS


async def test_followers_with_other_filters_and_places_are_sent_what_is_theirs(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1, points=[loss_at(1, 0.1), loss_at(1, 0.9, "train_accuracy")])
    first: Any = await server.metrics.StreamMetrics(StreamMetricsRequest(job_id=gang.job_id)).read()
    cursor = first.cursor
    requests = [
        StreamMetricsRequest(job_id=gang.job_id),
        StreamMetricsRequest(job_id=gang.job_id, names=["train_loss"]),
        StreamMetricsRequest(job_id=gang.job_id, names=["train_accuracy"]),
        StreamMetricsRequest(job_id=gang.job_id, cursor=cursor),
        StreamMetricsRequest(job_id=gang.job_id, cursor=cursor, names=["train_loss"]),
    ]
    seen: list[list[tuple[str, int]]] = [[] for _ in range(10 * len(requests))]

    async def follow(number: int) -> None:
        async for response in server.metrics.StreamMetrics(requests[number % len(requests)]):
            seen[number] += [(point.name, point.step) for point in response.points]

    following = [asyncio.create_task(follow(number)) for number in range(len(seen))]
    await launcher.report(gang, 2, points=[loss_at(2, 0.1), loss_at(2, 0.9, "train_accuracy")])
    await launcher.finish(gang, 3, points=[loss_at(3, 0.1)])
    await asyncio.gather(*following)
    loss, accuracy = "train_loss", "train_accuracy"
    everything = [(loss, 1), (accuracy, 1), (loss, 2), (accuracy, 2), (loss, 3)]
    expected = [
        everything,
        [point for point in everything if point[0] == loss],
        [point for point in everything if point[0] == accuracy],
        everything[2:],
        [(loss, 2), (loss, 3)],
    ]
    assert seen == expected * 10


async def test_each_event_is_read_once_for_all_watchers_of_a_job(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    calls = [server.jobs.WatchJob(WatchJobRequest(job_id=gang.job_id)) for _ in range(FOLLOWERS)]
    watchers = Followers(calls, lambda response: len(response.events))
    await watchers.have_seen(2)  # submitted, starting
    with statements(server, "job_events") as noted:
        for number in range(1, REPORTS + 1):
            await launcher.report(gang, number, notes=[f"note {number}"])
            # The first report also says that the job trains.
            await watchers.have_seen(2 + 1 + number)
    assert REPORTS <= len(noted) <= 3 * REPORTS
    with statements(server, "jobs") as noted:
        await launcher.finish(gang, REPORTS + 1)
        await watchers.end()
    assert len(noted) < FOLLOWERS / 2
    assert watchers.seen == [2 + 1 + REPORTS + 1] * FOLLOWERS


async def test_each_line_is_read_once_for_all_followers_of_a_log(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    logs = LogServiceStub(server.channel)
    request = StreamLogsRequest(job_id=gang.job_id, follow=True)
    followers = Followers([logs.StreamLogs(request) for _ in range(FOLLOWERS)], lambda r: len(r.lines))
    store: Any = server.application._logs
    reads, read_some = [], store._read_some

    def counted(*arguments: Any) -> Any:
        reads.append(arguments)
        return read_some(*arguments)

    store._read_some = counted
    metadata = (("lockstep-attempt-token", gang.attempt_token),)
    for number in range(1, REPORTS + 1):
        line = LogLine(text=f"line {number}", attempt=1)
        report = ReportLogsRequest(job_id=gang.job_id, attempt=1, number=0, lines=[line], ends=[number])
        await launcher._stub.ReportLogs(report, metadata=metadata)
        await followers.have_seen(number)
    assert REPORTS <= len(reads) < REPORTS * FOLLOWERS / 5
    await launcher.finish(gang, 1)
    await followers.end()
    assert followers.seen == [REPORTS] * FOLLOWERS


async def test_followers_that_do_not_read_are_read_for_no_further_and_hold_nobody_up(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await launcher.report(gang, 1, points=[loss_at(1, 0.5)])
    request = StreamMetricsRequest(job_id=gang.job_id)
    silent = [server.metrics.StreamMetrics(request) for _ in range(20)]
    await asyncio.gather(*(call.wait_for_connection() for call in silent))
    reader = Followers([server.metrics.StreamMetrics(request)], lambda response: len(response.points))
    with statements(server, "metric_points") as noted:
        for number in range(100):
            points = [loss_at(1_000 * number + i, 0.5) for i in range(2, 1_002)]
            await launcher.report(gang, number + 2, points=points)
            await reader.have_seen(1_000 * (number + 1) + 1)
    # Each stream holds some messages in its window; the other hundred are read once, for who reads.
    assert len(noted) < 3 * 100 + 20 * 20
    await launcher.finish(gang, 102)
    await reader.end()
    for call in silent:
        call.cancel()
