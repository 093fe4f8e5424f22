"""Streams that break go on where they broke: nothing is lost, nothing comes twice."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest

from lockstep.client import Client, JobCancelled, JobFailed, JobState, LockstepError, NotFound, Unavailable, WaitTimeout
from lockstep.client.job import Job
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import ListMetricsResponse
from tests.support.scripted_server import (
    UNAVAILABLE,
    Refusal,
    ScriptedServer,
    a_job,
    a_point,
    an_update,
    points,
)

WHOLE_LIFE = [
    an_update("QUEUED", (1, "queued")),
    an_update("RUNNING", (2, "started"), (3, "first step")),
    an_update("SUCCEEDED", (4, "done"), result={"weights_digest": "ab12"}),
]
CURVE = [
    points("c1", a_point("train_loss", 1, 0.5), a_point("grad_norm", 1, 2.0)),
    points("c2", a_point("train_loss", 2, 0.25)),
]


@pytest.fixture
def job(server: ScriptedServer, client: Client) -> Job:
    server.on("GetJob", a_job("RUNNING"))
    return client.get_job("j-1")


def sequences(job: Job) -> list[int]:
    return [event.sequence for update in job.watch() for event in update.events]


def test_watching_gives_each_snapshot_with_its_events_and_ends_with_the_job(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", WHOLE_LIFE)
    updates = list(job.watch())
    assert [update.job.state for update in updates] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert [event.message for update in updates for event in update.events] == [
        "queued",
        "started",
        "first step",
        "done",
    ]
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None


@pytest.mark.parametrize("break_", [UNAVAILABLE, Refusal(grpc.StatusCode.CANCELLED, "shutting down")])
def test_a_broken_watch_goes_on_after_the_last_event_seen(server: ScriptedServer, job: Job, break_: Any) -> None:
    server.on("WatchJob", [*WHOLE_LIFE[:2], break_], UNAVAILABLE, [*WHOLE_LIFE[2:]])
    assert sequences(job) == [1, 2, 3, 4]
    assert [request.after_sequence for request in server.requests["WatchJob"]] == [0, 3, 3]


def test_a_watch_that_ends_before_the_job_goes_on(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", WHOLE_LIFE[:1], WHOLE_LIFE[1:])
    assert sequences(job) == [1, 2, 3, 4]
    assert [request.after_sequence for request in server.requests["WatchJob"]] == [0, 1]


def test_an_event_that_is_sent_again_is_not_given_again(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", [*WHOLE_LIFE[:2], UNAVAILABLE], WHOLE_LIFE)
    assert sequences(job) == [1, 2, 3, 4]


def test_a_watch_that_breaks_after_the_end_is_over(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", [*WHOLE_LIFE, UNAVAILABLE])
    assert sequences(job) == [1, 2, 3, 4]
    assert len(server.requests["WatchJob"]) == 1


def test_a_watch_outlives_a_restart_of_the_server(server: ScriptedServer, job: Job, release: threading.Event) -> None:
    server.on("WatchJob", [WHOLE_LIFE[0], lambda context: release.wait(timeout=30)], WHOLE_LIFE[1:])
    seen = []
    for update in job.watch():
        seen += [event.sequence for event in update.events]
        if seen == [1]:
            release.set()
            server.stop()
            server.start()
    assert seen == [1, 2, 3, 4]


def test_a_watch_of_no_job_is_not_repeated(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", Refusal(grpc.StatusCode.NOT_FOUND, "there is no job j-1"))
    with pytest.raises(NotFound, match=r"^there is no job j-1$"):
        list(job.watch())
    assert len(server.requests["WatchJob"]) == 1


def test_a_server_that_does_not_come_back_is_given_up(
    server: ScriptedServer, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lockstep.client._connection.RECONNECT_S", 0.3)
    server.on("WatchJob", [WHOLE_LIFE[0], UNAVAILABLE], UNAVAILABLE)
    with pytest.raises(Unavailable, match="no longer answers"):
        list(job.watch())


def test_streams_have_no_deadline_of_their_own(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", WHOLE_LIFE)
    server.on("StreamMetrics", CURVE)
    list(job.watch())
    list(job.metrics(follow=True))
    streams = [left for left in server.seconds_left if left is None or left > 1e6]
    assert len(streams) == 2


def test_following_metrics_ends_with_the_job(server: ScriptedServer, job: Job) -> None:
    server.on("StreamMetrics", CURVE)
    followed = [(point.name, point.step, point.value) for point in job.metrics(follow=True)]
    assert followed == [("train_loss", 1, 0.5), ("grad_norm", 1, 2.0), ("train_loss", 2, 0.25)]


def test_a_job_whose_metrics_are_followed_knows_how_it_stands(server: ScriptedServer, job: Job) -> None:
    server.on("StreamMetrics", CURVE)
    server.on("GetJob", a_job("QUEUED"), a_job("RUNNING"), a_job("SUCCEEDED"))
    states = [job.refresh().state]
    states += [job.state for _ in job.metrics(follow=True)]
    assert (states, job.state) == (["QUEUED", *["RUNNING"] * 3], "SUCCEEDED")


def test_a_stream_without_anything_in_it_ends_with_a_fresh_job_too(server: ScriptedServer, job: Job) -> None:
    server.on("StreamMetrics", [])
    server.on("StreamLogs", [])
    server.on("GetJob", a_job("FAILED"), a_job("CANCELLED"))
    assert (list(job.metrics(follow=True)), job.state) == ([], "FAILED")
    assert (list(job.logs(follow=True)), job.state) == ([], "CANCELLED")


def test_a_misnamed_time_to_wait_is_told_by_its_right_name(server: ScriptedServer, job: Job) -> None:
    with pytest.raises(TypeError, match=r"^wait\(\) has no argument 'timeout'; it takes timeout_s, in seconds, and"):
        job.wait(timeout=1)  # type: ignore[arg-type]
    assert not server.requests["WatchJob"]


def test_broken_metrics_go_on_from_the_cursor(server: ScriptedServer, job: Job) -> None:
    server.on("StreamMetrics", [CURVE[0], UNAVAILABLE], UNAVAILABLE, [CURVE[1]])
    followed = [point.value for point in job.metrics(["train_loss", "grad_norm"], follow=True)]
    assert followed == [0.5, 2.0, 0.25]
    assert [request.cursor for request in server.requests["StreamMetrics"]] == ["", "c1", "c1"]
    assert [list(request.names) for request in server.requests["StreamMetrics"]] == [["train_loss", "grad_norm"]] * 3


def test_following_metrics_can_begin_after_a_step(server: ScriptedServer, job: Job) -> None:
    server.on("StreamMetrics", CURVE)
    assert [point.step for point in job.metrics(after_step=1, follow=True)] == [2]


def test_waiting_returns_the_job_that_succeeded(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", WHOLE_LIFE)
    assert job.wait() is job
    assert job.result is not None
    assert job.result.weights_digest == "ab12"


def test_waiting_for_a_job_that_has_ended_asks_nobody(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job("SUCCEEDED"))
    client.get_job("j-1").wait(timeout_s=0)
    assert not server.requests["WatchJob"]


def test_a_failed_job_raises_with_its_error(server: ScriptedServer, job: Job) -> None:
    error = {"reason": "DATA_INVALID", "message": "is truncated", "field": "data.idx.root"}
    server.on("WatchJob", [an_update("FAILED", error=error)])
    with pytest.raises(JobFailed, match=r"^j-1 failed: data\.idx\.root: is truncated$") as caught:
        job.wait()
    assert caught.value.job is job
    assert caught.value.reason == "DATA_INVALID"


def test_a_cancelled_job_raises(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", [an_update("CANCELLED")])
    with pytest.raises(JobCancelled, match=r"^j-1 was cancelled$"):
        job.wait()


def test_waiting_ends_at_its_timeout_and_the_job_goes_on(
    server: ScriptedServer, job: Job, release: threading.Event
) -> None:
    server.on("WatchJob", [an_update("RUNNING"), lambda context: release.wait(timeout=30)])
    with pytest.raises(WaitTimeout, match=r"^j-1 has not ended after 0.2 s: it is RUNNING$") as caught:
        job.wait(timeout_s=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert not server.requests["CancelJob"]


def test_waiting_ends_at_its_timeout_also_while_the_server_is_away(server: ScriptedServer, job: Job) -> None:
    server.on("WatchJob", [an_update("RUNNING"), UNAVAILABLE], UNAVAILABLE)
    with pytest.raises(WaitTimeout, match=r"^j-1 has not ended after 0.3 s: it is RUNNING$"):
        job.wait(timeout_s=0.3)


def test_leaving_a_watch_ends_its_call(server: ScriptedServer, job: Job, release: threading.Event) -> None:
    def wait_for_the_end(context: grpc.ServicerContext) -> None:
        context.add_callback(release.set)

    server.on("WatchJob", [wait_for_the_end, WHOLE_LIFE[0], lambda context: release.wait(timeout=30)])
    watch = job.watch()
    next(watch)
    watch.close()  # type: ignore[attr-defined]
    assert release.wait(timeout=10)


def test_progress_off_a_terminal_is_told_in_lines(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    running = an_update("RUNNING", (2, "first step"), progress={"step": 30, "total_steps": 60, "epoch": 1.5})
    server.on("WatchJob", [running, WHOLE_LIFE[2]])
    values = {"train_loss": 0.25, "train_accuracy": 0.9, "samples_per_second": 12_345.6}
    server.on("ListMetrics", ListMetricsResponse(points=[a_point(name, 30, value) for name, value in values.items()]))
    job.wait(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "running: first step",
        "epoch 1.5/3  step 30/60  loss 0.25  accuracy 0.900  12,346 samples/s",
        "succeeded",
    ]


def test_progress_ends_with_the_final_metrics_also_of_a_job_that_had_ended(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"weights_digest": "ab12", "final_metrics": {"val_accuracy": 0.97, "val_loss": 0.125}}
    server.on("WatchJob", [an_update("SUCCEEDED", (3, "done"), result=result)])
    for _ in range(2):
        job.wait(progress=True)
        assert capsys.readouterr().err == "succeeded; val_accuracy 0.97, val_loss 0.125\n"


def test_a_failure_is_told_once_by_who_waits(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    server.on("WatchJob", [an_update("FAILED", (3, "the loss is not finite"), error={"message": "not finite"})])
    with pytest.raises(JobFailed, match="not finite"):
        job.wait(progress=True)
    assert capsys.readouterr().err == ""


def test_workers_that_are_done_are_not_missed(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = JobSpec(training={"max_epochs": 3}, resources={"workers": 2})
    done = {"step": 60, "total_steps": 60, "epoch": 3.0}
    leaving = an_update("RUNNING", (2, "all steps are done"), progress=done, running_workers=1, spec=spec)
    server.on("WatchJob", [leaving, WHOLE_LIFE[2]])
    server.on("ListMetrics", ListMetricsResponse())
    job.wait(progress=True)
    assert capsys.readouterr().err.splitlines()[1] == "epoch 3/3  step 60/60"


def test_progress_on_a_terminal_is_a_bar(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    progress = {"step": 60, "total_steps": 60, "epoch": 3.0}
    server.on("WatchJob", [an_update("RUNNING", progress=progress), an_update("SUCCEEDED", progress=progress)])
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("train_loss", 60, 0.25)]))
    job.wait(progress=True)
    shown = capsys.readouterr().err
    assert "epoch 3/3" in shown
    assert "loss 0.25" in shown


def test_all_events_are_read_however_many_messages_they_take(server: ScriptedServer, job: Job) -> None:
    def page(request: Any) -> Any:
        first = request.after_sequence + 1
        return an_update("RUNNING", *((number, f"event {number}") for number in range(first, min(first + 500, 1_201))))

    server.on("WatchJob", page)
    assert [event.sequence for event in job.events()] == list(range(1, 1_201))
    assert [request.after_sequence for request in server.requests["WatchJob"]] == [0, 500, 1000, 1200]


def test_reading_events_does_not_wait_for_the_next(server: ScriptedServer, job: Job, release: threading.Event) -> None:
    def hold(context: grpc.ServicerContext) -> None:
        release.wait(timeout=30)

    server.on("WatchJob", [an_update("QUEUED", (1, "queued")), hold], [an_update("PAUSED"), hold])
    assert [event.message for event in job.events()] == ["queued"]
    assert job.state is JobState.PAUSED


def test_a_watch_goes_on_while_the_job_is_paused(server: ScriptedServer, job: Job) -> None:
    paused = [an_update("PAUSING", (1, "pausing")), an_update("PAUSED", (2, "paused"))]
    server.on("WatchJob", [*paused, UNAVAILABLE], [an_update("QUEUED", (3, "resumed")), *WHOLE_LIFE[2:]])
    assert job.wait().state is JobState.SUCCEEDED
    assert [request.after_sequence for request in server.requests["WatchJob"]] == [0, 2]


def test_waiting_for_a_paused_job_ends_at_its_timeout(
    server: ScriptedServer, job: Job, release: threading.Event
) -> None:
    server.on("WatchJob", [an_update("PAUSED"), lambda context: release.wait(timeout=30)])
    with pytest.raises(WaitTimeout, match=r"^j-1 has not ended after 0.2 s: it is PAUSED$"):
        job.wait(timeout_s=0.2)


def test_progress_tells_of_lost_workers_heals_and_pauses(
    server: ScriptedServer, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    half = {"step": 30, "total_steps": 60, "epoch": 1.5}
    spec = JobSpec(training={"max_epochs": 3}, resources={"workers": 3})
    healed = an_update("RUNNING", (2, "healed"), progress=half, heals=1, running_workers=2, spec=spec)
    server.on("WatchJob", [healed, an_update("PAUSED", (3, "by its owner"), progress=half), WHOLE_LIFE[2]])
    server.on("ListMetrics", ListMetricsResponse())
    job.wait(progress=True)
    assert capsys.readouterr().err.splitlines() == [
        "running: healed",
        "epoch 1.5/3  2 of 3 workers  1 heal  step 30/60",
        "paused: by its owner",
        "succeeded",
    ]


@pytest.mark.parametrize(
    ("state", "shown"),
    [
        ("PAUSING", "pausing at epoch 1.5/3"),
        ("PAUSED", "paused at epoch 1.5/3"),
        ("RUNNING", "2 of 3 workers  2 heals"),
    ],
)
def test_the_bar_tells_where_the_job_stands(
    server: ScriptedServer,
    job: Job,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    shown: str,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    half = {"step": 30, "total_steps": 60, "epoch": 1.5}
    spec = JobSpec(training={"max_epochs": 3}, resources={"workers": 3})
    update = an_update(state, progress=half, heals=2, running_workers=2, spec=spec)
    server.on("WatchJob", [update, Refusal(grpc.StatusCode.NOT_FOUND, "the job was deleted")])
    server.on("ListMetrics", ListMetricsResponse())
    with pytest.raises(NotFound):
        job.wait(progress=True)
    assert shown in capsys.readouterr().err


def test_a_watch_of_a_closed_client_says_so(server: ScriptedServer, client: Client, job: Job) -> None:
    client.close()
    with pytest.raises(LockstepError, match=r"^this client is closed$"):
        list(job.watch())
