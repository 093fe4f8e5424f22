"""A job's log, from Python and on the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from lockstep.client import Client, Job, LogLine
from lockstep.v1.job_service_pb2 import ListJobsResponse
from lockstep.v1.log_service_pb2 import LogLine as LogLineMessage
from lockstep.v1.log_service_pb2 import StreamLogsResponse
from tests.support.scripted_server import UNAVAILABLE, Refusal, ScriptedServer, a_job

NOON = datetime(2026, 1, 31, 12, 0, 0, 123_000, UTC)


def a_line(text: str, rank: int | None = 0, worker: int = 0, *, is_notice: bool = False) -> LogLineMessage:
    line = LogLineMessage(attempt=1, worker=worker, rank=rank, text=text, is_notice=is_notice)
    line.time.FromDatetime(NOON)
    return line


def lines(cursor: str, *entries: LogLineMessage) -> StreamLogsResponse:
    return StreamLogsResponse(lines=entries, cursor=cursor)


@pytest.fixture
def job(server: ScriptedServer, client: Client) -> Job:
    server.on("GetJob", a_job("RUNNING"))
    return client.get_job("j-1")


@pytest.fixture(autouse=True)
def _in_greenwich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def test_lines_are_plain_values(server: ScriptedServer, job: Job) -> None:
    server.on("StreamLogs", [lines("c1", a_line("hello", rank=None, worker=3), a_line("gone", is_notice=True))])
    assert list(job.logs()) == [
        LogLine(NOON, 1, 3, None, "hello", is_notice=False),
        LogLine(NOON, 1, 0, 0, "gone", is_notice=True),
    ]
    (request,) = server.requests["StreamLogs"]
    assert (request.job_id, request.follow, request.cursor) == ("j-1", False, "")
    assert not any(request.HasField(field) for field in ("rank", "tail_lines", "since"))


def test_what_is_asked_for_reaches_the_server(server: ScriptedServer, job: Job) -> None:
    server.on("StreamLogs", [lines("c1")])
    assert list(job.logs(follow=True, rank=0, tail=0, since=NOON)) == []
    assert list(job.logs(since=timedelta(minutes=10))) == []
    first, second = server.requests["StreamLogs"]
    assert (first.follow, first.HasField("rank"), first.HasField("tail_lines")) == (True, True, True)
    assert first.since.ToDatetime(UTC) == NOON
    age = datetime.now(UTC) - second.since.ToDatetime(UTC)
    assert timedelta(minutes=10) <= age < timedelta(minutes=11)


def test_a_log_that_is_followed_goes_on_where_the_connection_broke(server: ScriptedServer, job: Job) -> None:
    server.on(
        "StreamLogs",
        [lines("c1", a_line("one")), UNAVAILABLE],
        [UNAVAILABLE],
        [lines("c2", a_line("two"))],
    )
    assert [line.text for line in job.logs(follow=True, tail=5)] == ["one", "two"]
    assert [request.cursor for request in server.requests["StreamLogs"]] == ["", "c1", "c1"]


Lockstep = Callable[..., tuple[int, str, str]]


def test_the_command_prints_time_rank_and_text(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job("RUNNING"))
    told = [
        a_line("reads", rank=None, worker=2),
        a_line("step 1\x1b[2J", rank=1),
        a_line("9 lines were dropped here: too fast", rank=1, is_notice=True),
    ]
    server.on("StreamLogs", [lines("c1", *told)])
    for follow in ((), ("-f",)):
        assert lockstep("logs", "j-1", *follow) == (
            0,
            "12:00:00.123 worker 2 | reads\n"
            "12:00:00.123 rank 1 | step 1\N{REPLACEMENT CHARACTER}[2J\n"
            "12:00:00.123 rank 1 | [lockstep] 9 lines were dropped here: too fast\n",
            "",
        )


def test_the_command_passes_on_what_is_wanted(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("StreamLogs", [lines("c1")])
    code, out, err = lockstep("logs", "j-1", "--rank", "1", "--tail", "3", "--since", "2026-01-31T12:00:00.123")
    assert (code, out, err) == (0, "", "no such lines\n")
    (request,) = server.requests["StreamLogs"]
    assert (request.rank, request.tail_lines, request.since.ToDatetime(UTC)) == (1, 3, NOON)
    lockstep("logs", "j-1", "--since", "1.5h")
    age = datetime.now(UTC) - server.requests["StreamLogs"][-1].since.ToDatetime(UTC)
    assert timedelta(minutes=90) <= age < timedelta(minutes=91)


@pytest.mark.parametrize("since", ["10", "soon", "m", "9999999999999d", "999999d", "2026-13-01"])
def test_a_time_that_is_none_is_refused_with_what_is_allowed(lockstep: Lockstep, since: str) -> None:
    code, _, err = lockstep("logs", "j-1", "--since", since)
    assert code == 2
    assert f"{since!r} is not one; allowed: a duration, such as 10m" in " ".join(err.split())


def test_a_log_without_lines_says_so(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job("QUEUED"))
    server.on("StreamLogs", [])
    assert lockstep("logs", "j-1") == (0, "", "nothing is logged yet\n")
    assert lockstep("logs", "j-1", "--tail", "0") == (0, "", "")


def test_ctrl_c_ends_the_command_quietly(
    server: ScriptedServer, lockstep: Lockstep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    server.on("GetJob", a_job("RUNNING"))
    monkeypatch.setattr(Job, "logs", interrupt)
    assert lockstep("logs", "j-1", "-f") == (130, "", "")


def test_a_job_that_is_not_there_is_told(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", Refusal(grpc.StatusCode.NOT_FOUND, "there is no job j-1"))
    server.on("ListJobs", ListJobsResponse())
    assert lockstep("logs", "j-1")[0] == 4
