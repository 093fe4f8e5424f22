"""Whole jobs: a spec goes in over gRPC, Ray workers train, the curve comes out."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from lockstep.client import Client, FailedPrecondition, JobCancelled, JobFailed, JobState, MetricKind
from tests.integration.conftest import LOCKSTEP, Server, digits, endless, quick, wait_for_state, wait_for_step
from tests.support.alone import assert_curve_of_the_engine_alone

BUF = Path(sys.executable).with_name("buf")


def test_every_number_of_workers_gives_the_curve_of_the_engine_alone(client: Client) -> None:
    jobs = [client.submit_job(digits(workers)) for workers in (1, 2, 3, 4)]
    for job in jobs:
        job.wait()
        assert_curve_of_the_engine_alone(job)
        assert {point.name for point in job.metrics(kind=MetricKind.TIMING)} == {"samples_per_second", "step_seconds"}
    assert len({job.curve_digest for job in jobs}) == 1


def test_a_followed_job_gives_each_point_once_and_ends_with_the_job(client: Client) -> None:
    job = client.submit_job(quick(log_every_steps=1))
    followed = list(job.metrics(follow=True))
    assert job.refresh().state is JobState.SUCCEEDED
    assert len(followed) == len(set(followed))
    assert set(followed) == set(job.metrics())


def test_a_job_tells_its_story_in_events(client: Client) -> None:
    job = client.submit_job(quick())
    updates = list(job.watch())
    events = [event for update in updates for event in update.events]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [str(event.state) for event in events]
    assert list(dict.fromkeys(states)) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert updates[-1].job.progress.step == updates[-1].job.progress.total_steps == 30
    assert job.refresh().hardware_class.startswith("cpu ")


@pytest.fixture
def mnist_spec(mnist_root: Path) -> dict[str, Any]:
    return {
        "name": "mnist-softmax",
        "model": {"softmax_regression": {}},
        "data": {"idx": {"root": str(mnist_root)}},
        "optimizer": {"sgd": {"learning_rate": 0.1}},
        "training": {"max_epochs": 1, "batch_size": 256},
        "resources": {"workers": 2},
    }


def test_mnist_by_yaml_by_python_and_by_a_client_in_another_language(
    server: Server, client: Client, mnist_spec: dict[str, Any], tmp_path: Path
) -> None:
    address = server.addresses()["grpc_address"]
    path = tmp_path / "mnist.yaml"
    path.write_text(yaml.safe_dump(mnist_spec))
    command = [LOCKSTEP, "--target", address, "submit", "-f", path]
    by_yaml = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    by_python = client.submit_job(mnist_spec).job_id

    # buf is a Go program; it learns the contract from the server's reflection.
    url = f"http://{address}/lockstep.v1.JobService/SubmitJob"
    command = [
        BUF,
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        "-d",
        json.dumps({"spec": mnist_spec}),
        url,
    ]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    by_buf = json.loads(answer)["jobId"]

    jobs = [client.get_job(job_id).wait() for job_id in (by_yaml, by_python, by_buf)]
    results = [job.result for job in jobs]
    assert results[0] is not None
    assert results[0] == results[1] == results[2]
    assert results[0].final_metrics["val_accuracy"] > 0.85

    url = f"http://{address}/lockstep.v1.MetricsService/ListMetrics"
    request = json.dumps({"job_id": by_buf, "names": ["val_loss"]})
    command = [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-d", request, url]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert [point["value"] for point in json.loads(answer)["points"]] == [results[0].final_metrics["val_loss"]]


def test_a_loss_that_explodes_fails_the_job_with_the_step_and_the_hint(client: Client) -> None:
    spec = digits()
    spec["model"] = {"linear_regression": {}}
    spec["data"] = {"builtin": {"name": "diabetes"}}
    spec["optimizer"] = {"sgd": {"learning_rate": 1000.0}}
    spec["training"]["max_epochs"] = 100
    with pytest.raises(JobFailed, match="learning_rate") as caught:
        client.submit_job(spec).wait()
    error = caught.value.job.error
    assert error is not None
    assert error.reason == "NON_FINITE_LOSS"
    assert "at step" in error.message
    assert caught.value.job.restarts == 0


def test_a_damaged_file_fails_the_job_while_it_starts_and_names_the_field(
    client: Client, mnist_root: Path, tmp_path: Path
) -> None:
    for path in mnist_root.glob("*ubyte*"):
        content = path.read_bytes()
        (tmp_path / path.name).write_bytes(content[: len(content) // 2] if "train-images" in path.name else content)
    spec = digits()
    spec["data"] = {"idx": {"root": str(tmp_path)}}
    job = client.submit_job(spec)
    with pytest.raises(JobFailed, match="train-images"):
        job.wait()
    assert job.error is not None
    assert (job.error.reason, job.error.field) == ("DATA_INVALID", "data.idx.root")
    assert "Traceback" not in job.error.message + job.error.traceback
    assert not job.metrics()


def test_a_cancelled_job_stops_within_a_step_and_frees_what_it_held(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(endless(workers=4)), 1)
    waiting = client.submit_job(quick(workers=4, min_workers=4))
    assert waiting.refresh().state is JobState.QUEUED
    job.cancel()
    with pytest.raises(JobCancelled):
        job.wait()
    waiting.wait()  # it needs all that the first one held


def test_first_come_is_first_served_and_gangs_are_whole(client: Client) -> None:
    first = wait_for_step(client.submit_job(endless(workers=3)), 1)
    second, third = client.submit_job(quick(workers=2, min_workers=2)), client.submit_job(quick(workers=1))
    assert "waits" in second.refresh().state_reason
    first.cancel()
    second.wait()
    third.wait()
    # A CPU was free for the third all the time, but it must not overtake the second.
    starts = [
        next(event.time for update in job.watch() for event in update.events if str(event.state) == "STARTING")
        for job in (second, third)
    ]
    assert starts == sorted(starts)  # type: ignore[type-var]


def test_a_cancelled_job_in_the_queue_never_starts(client: Client) -> None:
    running = wait_for_state(client.submit_job(endless(workers=4)), "RUNNING")
    queued = client.submit_job(quick(workers=4)).cancel()
    assert queued.state is JobState.CANCELLED
    assert queued.attempt == 0
    running.cancel()


def test_more_than_the_whole_cluster_has_is_refused_with_the_numbers(client: Client) -> None:
    with pytest.raises(FailedPrecondition, match=r"5 workers.*4 CPUs"):
        client.submit_job(digits(workers=5, min_workers=5))


def test_the_model_of_a_job_predicts_raw_images_as_well_as_the_job_did(client: Client) -> None:
    job = client.submit_job(digits()).wait()
    assert job.result is not None
    images = load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(images.images))[: round(len(images.images) * 0.2)]
    predicted = job.load_model().predict(images.images[order])
    accuracy = (predicted == images.target[order]).mean()
    assert accuracy == pytest.approx(job.result.final_metrics["val_accuracy"], abs=1e-9)


def test_no_worker_works_when_its_job_has_ended(server: Server, client: Client) -> None:
    client.submit_job(quick(workers=4)).wait()
    server.wait_until_nobody_works()


def test_nodes_show_the_processes_of_a_job_and_the_same_ones_warm_after_it(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(endless(workers=2)), 1)
    working = server.workers(job)
    assert {process.pid for process in working} <= {process.pid for process in server.workers()}
    (node,) = client.list_nodes()
    assert (node.total.cpus, node.usable.cpus, node.held_by_jobs.cpus) == (4, 4, 2)
    of_job = [worker for worker in node.workers if worker.job_id == job.job_id]
    assert [(worker.state, worker.attempt, worker.number) for worker in of_job] == [
        ("WORKING", 1, 0),
        ("WORKING", 1, 1),
    ]
    assert client.get_cluster().jobs_running == 1

    job.cancel()
    server.wait_until_nobody_works()
    idle = {worker.pid: worker for node in client.list_nodes() for worker in node.workers}
    for process in working:
        worker = idle[process.pid]
        assert (worker.state, worker.owner) == ("WARM", "local")
        # Memory that is shared with other processes may be counted or not.
        assert 10e6 < worker.memory_bytes <= 2 * process.memory_info().rss
    client.submit_job(quick(workers=2)).wait()
    assert {process.pid for process in working} <= {process.pid for process in server.workers()}
    server.wait_until(lambda: client.get_cluster().held_by_jobs.cpus == 0)
