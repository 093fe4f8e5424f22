from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest

import lockstep.client
from lockstep.client import Client, DeadlineExceeded, Job, JobState, LockstepError, MetricKind, MetricPoint, errors
from lockstep.v1 import catalog_service_pb2, job_pb2, job_service_pb2, metrics_service_pb2
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.scripted_server import (
    UNAVAILABLE,
    Refusal,
    ScriptedServer,
    a_job,
    a_point,
    an_update,
    checkpoints,
    violations,
)

SPEC: dict[str, Any] = {
    "name": "digits",
    "model": {"mlp": {"hidden_units": [64]}},
    "data": {"builtin": {"name": "digits"}},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
    "training": {"seed": 7},
}


def test_a_submit_is_repeated_under_one_request_id_until_the_server_answers(
    server: ScriptedServer, client: Client
) -> None:
    server.on("SubmitJob", UNAVAILABLE, UNAVAILABLE, a_job())
    assert client.submit_job(SPEC).job_id == "j-1"
    request_ids = [request.request_id for request in server.requests["SubmitJob"]]
    assert len(request_ids) == 3
    assert len(set(request_ids)) == 1
    assert request_ids[0]


def test_two_submits_have_two_request_ids(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", a_job())
    client.submit_job(SPEC)
    client.submit_job(SPEC)
    first, second = server.requests["SubmitJob"]
    assert first.request_id != second.request_id


def test_a_submit_sends_the_spec_and_the_callers_request_id(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", a_job())
    client.submit_job(SPEC, request_id="mine", validate_only=True)
    (request,) = server.requests["SubmitJob"]
    assert request.spec == JobSpec(**SPEC)
    assert (request.request_id, request.validate_only) == ("mine", True)


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_other_errors_than_an_absent_server_are_not_repeated(
    server: ScriptedServer, client: Client, status: grpc.StatusCode
) -> None:
    server.on("SubmitJob", Refusal(status))
    with pytest.raises(LockstepError):
        client.submit_job(SPEC)
    assert len(server.requests["SubmitJob"]) == 1


def test_every_call_has_a_deadline_of_ten_seconds(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", a_job())
    server.on("GetJob", a_job())
    for method in ("CancelJob", "PauseJob", "ResumeJob", "UpdateJob"):
        server.on(method, a_job("RUNNING"))
    server.on("ListCheckpoints", checkpoints())
    server.on("WatchJob", [an_update("RUNNING")])
    server.on("ListJobs", job_service_pb2.ListJobsResponse())
    server.on("ListMetrics", metrics_service_pb2.ListMetricsResponse())
    server.on("ListModels", catalog_service_pb2.ListModelsResponse())
    server.on("ListDatasets", catalog_service_pb2.ListDatasetsResponse())
    server.on("ListOptimizers", catalog_service_pb2.ListOptimizersResponse())
    job = client.submit_job(SPEC)
    job.refresh().cancel().pause().resume().scale(2).metrics()
    assert job.checkpoints() == []
    assert job.events() == []
    client.list_jobs()
    client.list_models()
    client.list_datasets()
    client.list_optimizers()
    assert len(server.seconds_left) == 13
    assert all(left is not None and 9 < left < 10.5 for left in server.seconds_left)


def test_a_server_that_does_not_answer_is_given_up(
    server: ScriptedServer, client: Client, monkeypatch: pytest.MonkeyPatch, release: threading.Event
) -> None:
    monkeypatch.setattr("lockstep.client._connection.UNARY_TIMEOUT_S", 0.2)
    server.on("GetJob", lambda request: release.wait(timeout=30) and a_job())
    with pytest.raises(DeadlineExceeded, match=r"^the server at 127.0.0.1:\d+ did not answer in time$"):
        client.get_job("j-1")


def test_the_token_travels_with_every_call(server: ScriptedServer) -> None:
    server.on("GetJob", a_job())
    with Client(server.target, token="secret") as client:
        client.get_job("j-1")
    assert server.metadata[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("token", ["secret\n", "s\u00e9cret"])
def test_a_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(LockstepError, match=r"^the token holds") as caught:
        Client(token=token)
    assert "cret" not in str(caught.value)


def test_without_a_token_there_is_no_authorization(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job())
    client.get_job("j-1")
    assert "authorization" not in server.metadata[0]


def test_target_and_token_come_from_the_environment(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKSTEP_TARGET", server.target)
    monkeypatch.setenv("LOCKSTEP_TOKEN", "from-outside")
    server.on("GetJob", a_job())
    with Client() as client:
        assert client.target == server.target
        client.get_job("j-1")
    assert server.metadata[0]["authorization"] == "Bearer from-outside"


def test_the_target_is_this_machine_when_nothing_names_one() -> None:
    with Client() as client:
        assert client.target == "127.0.0.1:50051"


def test_the_module_submits_to_the_server_that_the_environment_names(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKSTEP_TARGET", server.target)
    server.on("SubmitJob", a_job())
    first, second = lockstep.client.submit_job(SPEC), lockstep.client.submit_job(SPEC)
    assert first.job_id == "j-1"
    assert first._client is second._client
    first._client.close()


def test_all_pages_of_jobs_are_read(server: ScriptedServer, client: Client) -> None:
    server.on(
        "ListJobs",
        job_service_pb2.ListJobsResponse(jobs=[a_job(job_id="j-3"), a_job(job_id="j-2")], next_page_token="more"),
        job_service_pb2.ListJobsResponse(jobs=[a_job(job_id="j-1")]),
    )
    jobs = client.list_jobs(states=["running", JobState.QUEUED], labels={"team": "vision"}, owner="ann")
    assert [job.job_id for job in jobs] == ["j-3", "j-2", "j-1"]
    first, second = server.requests["ListJobs"]
    assert (first.page_token, second.page_token) == ("", "more")
    assert list(second.states) == [3, 1]
    assert (dict(second.labels), second.owner) == ({"team": "vision"}, "ann")


def test_one_state_may_stand_alone(server: ScriptedServer, client: Client) -> None:
    server.on("ListJobs", job_service_pb2.ListJobsResponse())
    assert client.list_jobs(states="failed") == []
    assert server.requests["ListJobs"][0].states == [job_pb2.JOB_STATE_FAILED]


def test_all_pages_of_metrics_are_read_as_typed_points(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job())
    server.on(
        "ListMetrics",
        metrics_service_pb2.ListMetricsResponse(points=[a_point("train_loss", 1, 0.1)], next_page_token="more"),
        metrics_service_pb2.ListMetricsResponse(points=[a_point("step_seconds", 1, 0.2, "TIMING")]),
    )
    points = client.get_job("j-1").metrics(["train_loss", "step_seconds"], after_step=0, kind="result")
    assert points == [
        MetricPoint("train_loss", 1, 0.1, 0.1, MetricKind.RESULT),
        MetricPoint("step_seconds", 1, 0.1, 0.2, MetricKind.TIMING),
    ]
    first, second = server.requests["ListMetrics"]
    assert (first.page_token, second.page_token) == ("", "more")
    assert list(second.names) == ["train_loss", "step_seconds"]
    assert second.kind == metrics_service_pb2.METRIC_KIND_RESULT


def test_a_job_tells_what_the_server_knows(server: ScriptedServer, client: Client) -> None:
    message = a_job("FAILED", state_reason="lost", attempt=2, restarts=1, curve_digest="c", hardware_class="cpu")
    message.heals, message.running_workers = 4, 3
    message.create_time.FromDatetime(datetime(2024, 5, 17, 12, 0, tzinfo=UTC))
    message.progress.step, message.progress.total_steps, message.progress.epoch = 30, 60, 1.5
    message.error.reason, message.error.message, message.error.rank = "USER_ERROR", "division by zero", 0
    server.on("GetJob", message)
    job = client.get_job("j-1")
    assert (job.job_id, job.name, job.state, job.state_reason) == ("j-1", "digits", JobState.FAILED, "lost")
    assert (job.attempt, job.restarts, job.curve_digest, job.hardware_class) == (2, 1, "c", "cpu")
    assert (job.heals, job.running_workers) == (4, 3)
    assert job.create_time == datetime(2024, 5, 17, 12, 0, tzinfo=UTC)
    assert (job.start_time, job.end_time, job.result) == (None, None, None)
    assert (job.progress.step, job.progress.total_steps, job.progress.epoch) == (30, 60, 1.5)
    assert job.error is not None
    assert (job.error.reason, job.error.message, job.error.rank) == ("USER_ERROR", "division by zero", 0)
    assert job.proto == message


def test_the_result_of_a_job_keeps_its_bits(server: ScriptedServer, client: Client) -> None:
    result = {"weights_digest": "ab12", "final_metrics": {"val_accuracy": 0.1 + 0.2}}
    server.on("GetJob", a_job("SUCCEEDED", result=result))
    job = client.get_job("j-1")
    assert job.state == "SUCCEEDED"
    assert job.result is not None
    assert (job.result.weights_digest, job.result.final_metrics) == ("ab12", {"val_accuracy": 0.1 + 0.2})


def test_a_state_of_a_newer_server_is_no_error(server: ScriptedServer, client: Client) -> None:
    message = a_job()
    message.state = 99  # type: ignore[assignment]
    server.on("GetJob", message)
    assert client.get_job("j-1").state is JobState.UNSPECIFIED


def test_the_catalog_is_read_as_typed_entries(server: ScriptedServer, client: Client) -> None:
    parameter = {"name": "hidden_units", "type": "list of integers", "default_json": "[256]", "limits": "1 to 64"}
    entry = {"name": "mlp", "description": "A perceptron.", "parameters": [parameter], "tasks": ["classification"]}
    server.on("ListModels", catalog_service_pb2.ListModelsResponse(models=[entry]))
    server.on("ListDatasets", catalog_service_pb2.ListDatasetsResponse(datasets=[{"name": "idx"}]))
    server.on("ListOptimizers", catalog_service_pb2.ListOptimizersResponse(optimizers=[{"name": "sgd"}]))
    (model,) = client.list_models()
    assert (model.name, model.tasks, model.parameters[0].default) == ("mlp", ("classification",), [256])
    assert [dataset.name for dataset in client.list_datasets()] == ["idx"]
    assert [optimizer.name for optimizer in client.list_optimizers()] == ["sgd"]


def test_a_job_that_was_only_validated_cannot_be_waited_for(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", a_job(job_id=""))
    job = client.submit_job(SPEC, validate_only=True)
    with pytest.raises(LockstepError, match=r"^this job was only validated, not submitted"):
        job.wait()


def test_cancelling_a_job_that_has_ended_is_refused(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job("SUCCEEDED"))
    server.on("CancelJob", Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job j-1 has ended: it is SUCCEEDED"))
    with pytest.raises(errors.FailedPrecondition, match=r"^job j-1 has ended: it is SUCCEEDED$"):
        client.get_job("j-1").cancel()


@pytest.mark.parametrize(
    ("method", "change", "state"),
    [("PauseJob", Job.pause, "PAUSING"), ("ResumeJob", Job.resume, "QUEUED"), ("CancelJob", Job.cancel, "CANCELLING")],
)
def test_a_change_of_state_returns_the_job_as_it_is_then(
    server: ScriptedServer, client: Client, method: str, change: Callable[[Job], Job], state: str
) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on(method, UNAVAILABLE, a_job(state), Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job j-1 has ended"))
    job = client.get_job("j-1")
    assert change(job) is job
    assert job.state == state
    assert [request.job_id for request in server.requests[method]] == ["j-1", "j-1"]
    with pytest.raises(errors.FailedPrecondition, match=r"^job j-1 has ended$"):
        change(job)


def test_scaling_asks_for_a_number_of_workers_and_for_nothing_else(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("UpdateJob", a_job("RUNNING", spec=JobSpec(resources={"workers": 3})))
    assert client.get_job("j-1").scale(3).spec.resources.workers == 3
    assert server.requests["UpdateJob"] == [job_service_pb2.UpdateJobRequest(job_id="j-1", workers=3)]


def test_scaling_out_of_bounds_is_an_invalid_spec(server: ScriptedServer, client: Client) -> None:
    details = violations("SPEC_INVALID", resources__workers="must be at most 4 (resources.shards), is 9")
    server.on("GetJob", a_job("RUNNING"))
    server.on("UpdateJob", Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid", details))
    with pytest.raises(errors.InvalidSpec, match=r"^resources\.workers: must be at most 4"):
        client.get_job("j-1").scale(9)


@pytest.mark.parametrize("details", [violations("MESSAGE_TOO_LARGE")[:1], ()], ids=["by us", "by gRPC"])
def test_a_spec_that_is_too_large_is_an_invalid_spec(server: ScriptedServer, client: Client, details: Any) -> None:
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "the request has 5,000,000 bytes", details)
    server.on("SubmitJob", refusal)
    server.on("GetJob", refusal)
    with pytest.raises(errors.InvalidSpec, match=r"^the request has 5,000,000 bytes$") as caught:
        client.submit_job(SPEC)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(errors.ResourceExhausted):
        client.get_job("j-1")


def test_a_quota_that_is_used_up_is_no_invalid_spec(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "no more", violations("QUOTA_EXCEEDED")[:1]))
    with pytest.raises(errors.ResourceExhausted, match=r"^no more$"):
        client.submit_job(SPEC)


@pytest.mark.parametrize("form", ["{}", "http://{}", "grpc://{}", "http://{}/", " {} "])
def test_a_target_may_be_written_as_a_url(server: ScriptedServer, form: str) -> None:
    server.on("ListJobs", job_service_pb2.ListJobsResponse())
    with Client(form.format(server.target)) as client:
        assert (client.target, client.list_jobs()) == (server.target, [])


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("gpu-server", "gpu-server:50051"),
        (" ", "127.0.0.1:50051"),
        ("http://gpu-server/", "gpu-server:50051"),
        ("[::1]", "[::1]:50051"),
        ("[::1]:7", "[::1]:7"),
        ("dns:///gpu-server:7", "dns:///gpu-server:7"),
        ("unix:/run/lockstep.sock", "unix:/run/lockstep.sock"),
        ("unix:lockstep.sock", "unix:lockstep.sock"),
    ],
)
def test_a_target_without_a_port_gets_the_usual_one_and_what_only_grpc_knows_stays(target: str, address: str) -> None:
    with Client(target) as client:
        assert client.target == address


def test_a_target_that_asks_for_tls_is_refused() -> None:
    with pytest.raises(LockstepError, match=r"^the target is https://host:1, .* speaks no TLS; write host:1$"):
        Client("https://host:1")
