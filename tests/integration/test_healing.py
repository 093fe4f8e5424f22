"""Workers die, hang, come and go, and the owner of the job sees the same numbers."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lockstep.client import Client, Job, JobFailed
from lockstep.workers.engine.state.digest import digest_of
from tests.distributed.test_ranks_together import write_idx
from tests.integration.conftest import Server, digits, endless, quick, wait_for_event, wait_for_state, wait_for_step
from tests.support.alone import assert_curve_of_the_engine_alone

LONG = {"max_epochs": 60}
"""Longer than it takes to find a worker and to kill it."""


def story(job: Job) -> str:
    return "\n".join(event.message for event in job.events())


@pytest.mark.parametrize(
    "victim", [0, pytest.param(1, marks=pytest.mark.exhaustive), pytest.param(2, marks=pytest.mark.exhaustive)]
)
def test_a_killed_worker_costs_no_bit_and_no_restart(server: Server, client: Client, victim: int) -> None:
    job = wait_for_step(client.submit_job(quick(workers=3, **LONG)), 20)
    server.workers(job)[victim].kill()
    job.wait()
    assert (job.attempt, job.restarts, job.heals) == (1, 0, 1)
    assert_curve_of_the_engine_alone(job)
    assert "died: its process was killed or crashed; 2 workers go on" in story(job)
    assert "healed after a pause of" in story(job)


def test_a_job_grows_back_to_its_workers(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(endless(workers=2)), 20)
    server.workers(job)[0].kill()
    wait_for_event(job, "grown to 2 workers")
    assert job.refresh().running_workers == 2
    job.cancel()


@pytest.mark.exhaustive
def test_a_hung_worker_is_killed_and_healed(server: Server, client: Client) -> None:
    spec = endless(workers=3) | {"recovery": {"hang_timeout_s": 1}}
    job = wait_for_step(client.submit_job(spec), 20)
    server.workers(job)[1].send_signal(signal.SIGSTOP)
    wait_for_event(job, "did not answer for 1 s; 2 workers go on")
    step = job.refresh().progress.step
    wait_for_step(job, step + 20)
    job.cancel()


def test_when_all_workers_are_gone_the_newest_checkpoint_is_used(server: Server, client: Client) -> None:
    spec = quick(workers=2, **LONG) | {"recovery": {"checkpoint_every_steps": 50}}
    job = wait_for_step(client.submit_job(spec), 120)
    for worker in server.workers(job):
        worker.kill()
    job.wait()
    assert (job.attempt, job.restarts) == (2, 1)
    assert_curve_of_the_engine_alone(job)
    assert "going on from the checkpoint of step" in story(job)


def test_a_job_without_restarts_fails_when_it_loses_all_workers(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(endless() | {"recovery": {"max_restarts": 0}}), 20)
    for worker in server.workers(job):
        worker.kill()
    with pytest.raises(JobFailed, match=r"recovery\.max_restarts is 0"):
        job.wait()
    assert job.error is not None
    assert job.error.reason == "WORKER_LOST"


@pytest.mark.exhaustive
def test_below_min_workers_a_job_waits_with_a_checkpoint(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(quick(workers=3, min_workers=3, **LONG)), 20)
    server.workers(job)[2].kill()
    job.wait()
    assert (job.attempt, job.restarts) == (2, 0)
    assert_curve_of_the_engine_alone(job)
    assert "fewer than resources.min_workers (3)" in story(job)
    assert "going on from the checkpoint of step" in story(job)


@pytest.mark.exhaustive
def test_a_job_starts_with_what_is_free_and_grows_later(client: Client) -> None:
    other = wait_for_state(client.submit_job(endless(workers=3)), "RUNNING")
    job = wait_for_step(client.submit_job(quick(workers=3, **LONG)), 1)
    assert job.refresh().running_workers == 1
    other.cancel()
    job.wait()
    assert_curve_of_the_engine_alone(job)


@pytest.mark.exhaustive
def test_scaling_a_running_job_changes_no_bit(client: Client) -> None:
    job = wait_for_step(client.submit_job(quick(workers=1, max_epochs=2000)), 20)
    job.scale(3)
    wait_for_event(job, "grown to 3 workers")
    job.scale(2)
    wait_for_event(job, "shrunk to 2 workers")
    job.wait()
    assert_curve_of_the_engine_alone(job)


def test_a_paused_job_frees_everything_and_goes_on_exactly(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(quick(workers=2, **LONG)), 20)
    job.pause()
    wait_for_state(job, "PAUSED")
    server.wait_until_nobody_works()
    step = job.refresh().progress.step
    newest = job.checkpoints()[0]
    assert newest.step >= step >= 20
    job.resume()
    job.wait()
    assert_curve_of_the_engine_alone(job)
    assert f"going on from the checkpoint of step {newest.step}" in story(job)


def test_nobody_joins_with_other_data_and_no_job_goes_on_with_it(
    server: Server, client: Client, tmp_path: Path
) -> None:
    write_idx(tmp_path, seed=1)
    spec = endless(workers=2) | {"data": {"idx": {"root": str(tmp_path)}}}
    job = wait_for_step(client.submit_job(spec), 20)
    write_idx(tmp_path, seed=2)
    server.workers(job)[0].kill()
    wait_for_event(job, "data.idx: its data is not that of the others")
    wait_for_step(job, job.refresh().progress.step + 20)
    assert job.refresh().running_workers == 1
    job.pause()
    wait_for_state(job, "PAUSED")
    job.resume()
    with pytest.raises(JobFailed, match="the data is not that which the checkpoint of step"):
        job.wait()
    assert job.error is not None
    assert (job.error.reason, job.error.field) == ("DATA_INVALID", "data.idx.root")


@pytest.fixture(scope="module")
def trained(server: Server) -> Iterator[Job]:
    with server.client() as client:
        yield client.submit_job(digits(max_epochs=20)).wait()


def test_checkpoints_can_be_fetched_and_started_from(client: Client, trained: Job, tmp_path: Path) -> None:
    assert trained.result is not None
    newest = trained.checkpoints()[0]
    assert newest.weights_digest == trained.result.weights_digest
    weights = trained.load_state_dict()
    assert digest_of(weights) == trained.result.weights_digest
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())
    folder = trained.download(tmp_path)
    by_folder = client.submit_job(digits(max_epochs=1) | {"init_from": {"uri": str(folder)}}).wait()
    by_job = client.submit_job(digits(max_epochs=1) | {"init_from": {"job_id": trained.job_id}}).wait()
    fresh = client.submit_job(digits(max_epochs=1)).wait()
    assert by_folder.result == by_job.result != fresh.result
    assert by_job.result is not None
    assert fresh.result is not None
    assert by_job.result.final_metrics["val_accuracy"] > fresh.result.final_metrics["val_accuracy"]


def test_weights_of_another_shape_are_named_before_training(client: Client, trained: Job, tmp_path: Path) -> None:
    folder = trained.download(tmp_path)
    spec = digits(max_epochs=1) | {"model": {"mlp": {"hidden_units": [7]}}, "init_from": {"uri": str(folder)}}
    job = client.submit_job(spec)
    with pytest.raises(JobFailed, match="the model wants"):
        job.wait()
    assert job.error is not None
    assert (job.error.reason, job.error.field) == ("DATA_INVALID", "init_from")
