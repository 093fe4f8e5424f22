"""What is lost when the server or its launcher is killed: nothing that was acknowledged."""

from lockstep.client import Client, JobState
from tests.integration.conftest import AGENT, Server, endless, quick, wait_for_step
from tests.integration.test_telemetry import telemetry_of
from tests.support.alone import assert_curve_of_the_engine_alone

LONG = {"max_epochs": 60}
"""Longer than it takes to find a worker and to kill it."""


def test_a_killed_server_comes_back_with_all_its_jobs(server: Server) -> None:
    with server.client() as client:
        running = wait_for_step(client.submit_job(quick(workers=3, **LONG)), 20)
        queued = client.submit_job(quick(workers=4, seed=8, min_workers=4))
        cancelled = client.submit_job(endless()).cancel()
    workers = {worker.pid for worker in server.workers(running)}
    server.kill()
    server.start()
    with server.client() as client:
        assert {worker.pid for worker in server.workers()} >= workers, "they have gone on meanwhile"
        running, queued = (client.get_job(job.job_id).wait() for job in (running, queued))
        assert (running.attempt, running.restarts, running.heals) == (1, 0, 0)
        assert queued.attempt == 1
        assert client.get_job(cancelled.job_id).state is JobState.CANCELLED
        assert_curve_of_the_engine_alone(running)
    assert "adopting the embedded Ray" in server.log()


def test_a_killed_launcher_is_replaced_and_its_jobs_go_on(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(quick(workers=3, **LONG)), 20)
    worker = server.workers(job)[1]
    (launcher,) = server.processes("lockstep.workers.launcher")
    launcher.kill()
    worker.kill()  # while nobody looks after it
    job.wait()
    assert (job.attempt, job.restarts, job.heals) == (1, 0, 1)
    assert_curve_of_the_engine_alone(job)


def test_a_new_launcher_brings_new_agents_and_the_old_ones_end(server: Server) -> None:
    server.wait_until(lambda: len(server.processes(AGENT)) == 1)  # another test may have killed its predecessor
    (agent,) = server.processes(AGENT)
    first = telemetry_of(server, lambda told: True)
    (launcher,) = server.processes("lockstep.workers.launcher")
    launcher.kill()
    agent.wait(30)
    server.wait_until(lambda: [process.pid for process in server.processes(AGENT)] not in ([], [agent.pid]))
    (second,) = server.processes(AGENT)
    telemetry_of(server, lambda told: told.receive_time > first.receive_time)
    ended = server.count_in_log("a node agent has ended")
    second.kill()
    server.wait_for_log("a node agent has ended", ended + 1)
    server.wait_until(lambda: bool(server.processes(AGENT)))
