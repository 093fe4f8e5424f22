"""StreamLogs and ReportLogs, against a server whose workers are played by the test."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from lockstep.server.rpc import log_service
from lockstep.v1.internal_service_pb2 import ReportLogsRequest, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceStub
from lockstep.v1.log_service_pb2 import LogLine, StreamLogsRequest, StreamLogsResponse
from lockstep.v1.log_service_pb2_grpc import LogServiceStub
from tests.support.server import Running, ScriptedLauncher, serving, start_job, status_of, violations_of

TIME_S = 1_700_000_000


async def say(
    server: Running,
    gang: StartGang,
    texts: Sequence[str],
    *,
    start: int = 0,
    number: int = 0,
    rank: int | None = 0,
    at_s: int = TIME_S,
    token: str | None = None,
    ends: Sequence[int] | None = None,
    spool: int = 7,
) -> None:
    """Deliver lines as a worker does, the first of which begins at position `start`."""
    request = ReportLogsRequest(job_id=gang.job_id, attempt=gang.attempt, number=number, spool=spool)
    for text in texts:
        line = request.lines.add(text=text, rank=rank)
        line.time.FromSeconds(at_s)
        start += len(text) + 1
        request.ends.append(start)
    if ends is not None:
        request.ends[:] = ends
    metadata = (("lockstep-attempt-token", gang.attempt_token if token is None else token),)
    await InternalServiceStub(server.channel).ReportLogs(request, metadata=metadata)


def stream(server: Running, gang: StartGang, **fields: Any) -> Any:
    return LogServiceStub(server.channel).StreamLogs(StreamLogsRequest(job_id=gang.job_id, **fields))


async def read(server: Running, gang: StartGang, **fields: Any) -> list[LogLine]:
    return [line async for response in stream(server, gang, **fields) for line in response.lines]


async def texts(server: Running, gang: StartGang, **fields: Any) -> list[str]:
    return [line.text for line in await read(server, gang, **fields)]


async def test_lines_come_in_the_order_of_arrival_with_attempt_worker_rank_and_time(server: Running) -> None:
    _, gang = await start_job(server)
    assert await read(server, gang) == []
    await say(server, gang, ["a", ""], number=0, rank=None)
    await say(server, gang, ["b"], number=1, rank=1, at_s=TIME_S + 1)
    await say(server, gang, ["c"], number=0, rank=0, start=3)
    lines = await read(server, gang)
    assert [(line.text, line.attempt, line.worker, line.HasField("rank"), line.rank) for line in lines] == [
        ("a", 1, 0, False, 0),
        ("", 1, 0, False, 0),
        ("b", 1, 1, True, 1),
        ("c", 1, 0, True, 0),
    ]
    assert [line.time.seconds - TIME_S for line in lines] == [0, 0, 1, 0]


async def test_lines_that_come_again_are_stored_once_also_by_the_next_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await say(server, gang, ["one", "two"])
        await say(server, gang, ["one", "two"])
        await say(server, gang, ["two", "three"], start=4)
    async with serving(tmp_path) as server:
        await say(server, gang, ["three", "four"], start=8)
        await say(server, gang, ["one"], number=1)
        assert await texts(server, gang) == ["one", "two", "three", "four", "one"]


async def test_a_worker_that_gets_the_number_of_one_before_it_has_lines_of_its_own(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await say(server, gang, ["of the first"], spool=1)
    async with serving(tmp_path) as server:
        await say(server, gang, ["of the 2nd"], spool=2)
        assert await texts(server, gang) == ["of the first", "of the 2nd"]


async def test_a_record_that_the_disk_has_damaged_hides_none_that_come_later(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await say(server, gang, ["one"])
        await say(server, gang, ["two"], start=4)
    (segment,) = (tmp_path / "logs" / gang.job_id).iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"one", b"0ne"))
    async with serving(tmp_path) as server:
        await say(server, gang, ["three"], start=8)
        assert (await texts(server, gang))[-2:] == ["two", "three"]


async def test_a_record_that_a_crash_cut_off_is_no_hindrance(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await say(server, gang, ["one"])
        await say(server, gang, ["two"], start=4)
    (segment,) = (tmp_path / "logs" / gang.job_id).iterdir()
    segment.write_bytes(segment.read_bytes()[:-3])
    async with serving(tmp_path) as server:
        assert await texts(server, gang) == ["one"]
        await say(server, gang, ["two"], start=4)
        assert await texts(server, gang) == ["one", "two"]


async def test_rank_tail_and_since_choose_lines(server: Running) -> None:
    _, gang = await start_job(server)
    await say(server, gang, ["before"], rank=None)
    for number in range(5):
        await say(
            server,
            gang,
            [f"{number}a", f"{number}b"],
            start=7 + 6 * number,
            rank=number % 2,
            at_s=TIME_S + number,
        )
    assert await texts(server, gang, rank=1) == ["1a", "1b", "3a", "3b"]
    assert await texts(server, gang, tail_lines=3) == ["3b", "4a", "4b"]
    assert await texts(server, gang, tail_lines=3, rank=1) == ["1b", "3a", "3b"]
    assert await texts(server, gang, tail_lines=99, rank=1) == ["1a", "1b", "3a", "3b"]
    assert await texts(server, gang, tail_lines=0) == []
    assert await texts(server, gang, since={"seconds": TIME_S + 3}) == ["3a", "3b", "4a", "4b"]
    assert await texts(server, gang, since={"seconds": TIME_S + 3}, rank=1, tail_lines=1) == ["3b"]
    assert await texts(server, gang, since={"seconds": TIME_S + 9}) == []


async def test_a_follower_gets_each_new_line_until_the_workers_of_the_ended_job_have_left(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await say(server, gang, ["one"])
    responses = aiter(stream(server, gang, follow=True))
    assert [line.text for line in (await anext(responses)).lines] == ["one"]
    await say(server, gang, ["two"], start=4)
    assert [line.text for line in (await anext(responses)).lines] == ["two"]
    await launcher.report(gang, 1, digest="abc")
    await say(server, gang, ["three"], start=8)
    assert [line.text for line in (await anext(responses)).lines] == ["three"]
    await launcher.gang_stopped(gang)
    assert [response async for response in responses] == []


async def test_a_follower_who_comes_with_a_cursor_loses_nothing_and_gets_nothing_twice(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        _, gang = await start_job(server)
        await say(server, gang, ["one", "two"])
        response: StreamLogsResponse = await stream(server, gang, follow=True, tail_lines=1).read()
        assert [line.text for line in response.lines] == ["two"]
        await say(server, gang, ["three"], start=8)
    async with serving(tmp_path) as server:
        assert await texts(server, gang, cursor=response.cursor, tail_lines=0) == ["three"]


async def test_the_oldest_lines_go_first_and_a_notice_says_how_many(tmp_path: Path) -> None:
    async with serving(tmp_path, log_bytes_per_job=1 << 20) as server:
        _, gang = await start_job(server)
        first: StreamLogsResponse | None = None
        position = 0
        for number in range(300):
            lines = [f"{number:03} {part:03} {'x' * 60}" for part in range(100)]
            await say(server, gang, lines, start=position)
            position += sum(len(line) + 1 for line in lines)
            first = first or await stream(server, gang).read()
        folder = tmp_path / "logs" / gang.job_id
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 1 << 20
        notice, *kept = await read(server, gang)
        assert notice.is_notice
        assert notice.text == (
            f"{30_000 - len(kept):,} lines were dropped here: the log of a job may take 1,048,576 bytes "
            "(--log-bytes-per-job)"
        )
        assert len(kept) > 5_000
        assert kept[-1].text == lines[-1]
        assert first is not None
        again, *rest = await read(server, gang, cursor=first.cursor)
        assert again.text.startswith(f"{30_000 - len(kept) - 100:,} lines")
        assert rest == kept
        assert [line.text for line in await read(server, gang, tail_lines=250)] == [line.text for line in kept[-250:]]
    async with serving(tmp_path, log_bytes_per_job=1 << 20) as server:
        assert len(await read(server, gang)) == len(kept) + 1


async def test_bad_requests_are_refused(server: Running) -> None:
    _, gang = await start_job(server)
    bad: dict[str, Any] = {
        "rank": {"rank": -1},
        "tail_lines": {"tail_lines": -1},
        "cursor": {"cursor": "xyz"},
        "since": {"since": {"seconds": 10**18}},
    }
    for field, wrong in bad.items():
        error = await status_of(stream(server, gang, **wrong).read())
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list(violations_of(error)) == [field]
    other = StartGang(job_id="none")
    assert (await status_of(stream(server, other).read())).code() is grpc.StatusCode.NOT_FOUND
    too_much = await status_of(stream(server, gang, tail_lines=100_001).read())
    assert "100,000" in too_much.details()


async def test_only_a_worker_of_the_attempt_can_deliver_and_also_after_its_end(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    for token in ("", "wrong"):
        error = await status_of(say(server, gang, ["x"], token=token))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    for wrong in ([1, 2], [0], [-1]):
        error = await status_of(say(server, gang, ["x"], ends=wrong))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    await launcher.gang_stopped(gang, reason="USER_ERROR")
    await server.until(gang.job_id, lambda job: job.HasField("error"))
    await say(server, gang, ["late"])
    assert await texts(server, gang) == ["late"]


async def test_a_shutdown_ends_a_stream_as_unavailable(
    server: Running, launcher: ScriptedLauncher, gang: StartGang
) -> None:
    await say(server, gang, ["one"])
    call = stream(server, gang, follow=True)
    await call.read()
    ended = asyncio.ensure_future(status_of(call.read()))
    await launcher.leave()
    await server.application.stop()
    assert (await ended).code() is grpc.StatusCode.UNAVAILABLE


async def test_a_disk_that_takes_nothing_is_the_workers_to_wait_for(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gang = await start_job(server)
    (tmp_path / "logs").mkdir(exist_ok=True)
    (tmp_path / "logs" / gang.job_id).write_text("no folder")
    error = await status_of(say(server, gang, ["one"]))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    (tmp_path / "logs" / gang.job_id).unlink()
    await say(server, gang, ["one"])
    assert await texts(server, gang) == ["one"]


async def test_workers_that_never_leave_hold_no_reader_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_service, "_LEAVE_S", 0.1)

    async with serving(tmp_path) as server:
        launcher, gang = await start_job(server)
        await say(server, gang, ["one"])
        await launcher.report(gang, 1, digest="abc")
        assert await texts(server, gang) == ["one"]
