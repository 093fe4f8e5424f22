"""Where the time of a job goes, for programs, in `describe` and in `top`."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from typing import Any

import pytest

from lockstep.client import Client
from lockstep.v1 import cluster_service_pb2
from lockstep.v1.job_service_pb2 import ListJobsRequest, ListJobsResponse
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.ledger_pb2 import Ledger, PhaseSeconds, RankLedger
from lockstep.v1.telemetry_pb2 import GpuTelemetry, HostTelemetry, NodeTelemetry
from tests.support.scripted_server import ScriptedServer, a_job, an_update, checkpoints, nodes

GIB = 2**30


def a_rank(rank: int, steps: int = 100, **seconds: float) -> RankLedger:
    return RankLedger(
        rank=rank,
        seconds=PhaseSeconds(**{f"{phase}_s": value for phase, value in seconds.items()}),
        node_id="n-1",
        node_name="raptor",
        steps=steps,
        memory_bytes=GIB // 2,
        cpu_seconds=sum(seconds.values()) / 2,
    )


def a_ledger(steps: int = 100, factor: float = 1.0) -> Ledger:
    """Two ranks of which the second is the slower one."""
    return Ledger(
        ranks=[
            a_rank(0, steps, start_up=10, forward=20 * factor, backward=30 * factor, exchange_wait=40 * factor),
            a_rank(1, steps, start_up=10, forward=50 * factor, backward=40 * factor),
        ],
        straggler_rank=1,
        straggler_lag_ratio=0.444,
        flops_per_step=2e9,
    )


def running_jobs(request: ListJobsRequest) -> ListJobsResponse:
    """One that runs and one that waits."""
    spec = JobSpec(name="lenet")
    spec.training.batch_size = 256
    spec.resources.workers = 2
    jobs: dict[tuple[str, ...], Any] = {
        ("JOB_STATE_RUNNING",): a_job("RUNNING", spec=spec, attempt=1, running_workers=2),
        ("JOB_STATE_QUEUED",): a_job("QUEUED", "j-2", state_reason="waits for resources", spec=spec),
    }
    for job in jobs.values():
        job.progress.step, job.progress.total_steps = 50, 200
    found = jobs.get(tuple(_names(request)))
    return ListJobsResponse(jobs=[found] if found is not None else [])


def _names(request: ListJobsRequest) -> list[str]:
    from lockstep.v1.job_pb2 import JobState

    return [JobState.Name(state) for state in request.states]


@pytest.fixture
def busy(server: ScriptedServer) -> ScriptedServer:
    """A server with a node of CPUs and one with GPUs, at work."""
    server.on("ListJobs", running_jobs)
    server.on("GetLedger", a_ledger())
    amounts: dict[str, Any] = {"total": {"cpus": 8.0}, "usable": {"cpus": 8.0}, "held_by_jobs": {"cpus": 2.0}}
    server.on(
        "GetCluster", cluster_service_pb2.Cluster(is_ready=True, nodes=2, jobs_running=1, jobs_waiting=1, **amounts)
    )
    worker = cluster_service_pb2.Worker(
        state=cluster_service_pb2.WORKER_STATE_WORKING, job_id="j-1", attempt=1, number=4, rank=1, pid=7
    )
    worker.resources.cpus = 1.0
    host = HostTelemetry(cpus=8, cpu_utilization_ratio=0.25, memory_used_bytes=2 * GIB, memory_total_bytes=16 * GIB)
    on_cpus = cluster_service_pb2.Node(
        node_id="n-1", name="raptor", workers=[worker], telemetry=NodeTelemetry(host=host), **amounts
    )
    on_gpu = cluster_service_pb2.Worker(
        state=cluster_service_pb2.WORKER_STATE_WORKING, job_id="j-1", attempt=1, number=0, rank=0, gpu_indexes=[0]
    )
    gpus = [
        GpuTelemetry(
            index=0, name="NVIDIA H200", utilization_ratio=0.99, sm_active_ratio=0.02, power_watts=120.4,
            temperature_celsius=41.0, memory_used_bytes=4 * GIB, memory_total_bytes=140 * GIB,
        ),
        GpuTelemetry(index=1, name="NVIDIA H200", utilization_ratio=0.0),
    ]  # fmt: skip
    with_gpus = cluster_service_pb2.Node(
        node_id="n-2",
        name="stegosaurus",
        workers=[on_gpu],
        telemetry=NodeTelemetry(host=host, gpus=gpus),
        total={"cpus": 8.0, "gpus": 2.0},
        usable={"cpus": 8.0, "gpus": 2.0},
        held_by_jobs={"gpus": 1.0},
    )
    server.on("ListNodes", nodes(on_cpus, with_gpus))
    return server


def test_a_ledger_is_told_as_plain_values(busy: ScriptedServer, client: Client) -> None:
    busy.on("GetJob", a_job("RUNNING"))
    ledger = client.get_job("j-1").ledger()
    assert (ledger.straggler, ledger.flops_per_step) == (1, 2e9)
    assert ledger.seconds["forward"] == 70
    assert ledger.ranks[0].seconds["exchange_wait"] == 40
    assert (ledger.ranks[1].node, ledger.ranks[1].steps) == ("raptor", 100)


def test_describe_draws_where_the_time_went_and_names_the_straggler(busy: ScriptedServer, lockstep: Any) -> None:
    update = an_update("RUNNING", (1, "training"), attempt=1)
    busy.on("GetJob", update.job)
    busy.on("ListCheckpoints", checkpoints())
    busy.on("WatchJob", [update])
    code, out, err = lockstep("describe", "j-1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    table = lines[lines.index("Time") + 1 : lines.index("Events") - 1]
    assert table[0].split() == ["phase", "share", "rank", "0", "rank", "1"]
    assert table[1].split() == ["start_up", "10.0%", "██", "10.00", "s", "10.00", "s"]
    assert table[2].split() == ["forward", "35.0%", "███████", "20.00", "s", "50.00", "s"]
    assert table[4].split() == ["exchange_wait", "20.0%", "████", "40.00", "s", "0.00", "s"]
    assert table[5].split() == ["in", "all", "100", "s", "100", "s"]
    assert table[6] == "rank 1 on raptor is the straggler: the others wait for it for 44% of their steps"


def test_describe_says_whose_column_is_no_training(busy: ScriptedServer, lockstep: Any) -> None:
    ledger = Ledger(ranks=[a_rank(0, 100, start_up=2, forward=20), a_rank(1, 0, start_up=9)])
    update = an_update("RUNNING", (1, "training"), attempt=2)
    busy.on("GetJob", update.job)
    busy.on("GetLedger", ledger)
    busy.on("ListCheckpoints", checkpoints())
    busy.on("WatchJob", [update])
    out = lockstep("describe", "j-1")[1].splitlines()
    assert out[out.index("Events") - 2] == "rank 1 took no step: what is shown of it is no training"


def test_top_shows_what_works_for_whom_and_what_is_held_but_idle(
    busy: ScriptedServer, lockstep: Any, monkeypatch: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    code, out, err = lockstep("top", "--once")
    assert (code, err) == (0, "")
    lines = [line.rstrip() for line in out.splitlines()]
    assert "2 nodes, 2 of 8 CPUs held by jobs, 1 job running, 1 waiting" in lines[0]
    assert lines[3].split("  ")[0] == "raptor"
    assert "25%" in lines[3]
    assert "worker, 1 CPU" in lines[4]
    assert "50%" in lines[4]
    assert lines[4].endswith("j-1 rank 1")
    assert "GPU 0 NVIDIA H200" in lines[6]
    assert "4.0/140 GiB" in lines[6]
    assert "120 W 41 °C" in lines[6]
    assert lines[6].endswith("j-1 rank 0  held but idle")
    assert lines[7].endswith("nobody")
    running = next(line for line in lines if line.startswith("j-1"))
    assert running.split()[:4] == ["j-1", "lenet", "RUNNING", "2/2"]
    assert "25%" in running
    assert " 284 " in running  # 100 steps of 256 in 90 seconds
    assert "ccccccccccccccwwwwss" in running
    assert running.endswith("rank 1 is the straggler")
    waiting = next(line for line in lines if line.startswith("j-2"))
    assert waiting.endswith("waits for resources")


def test_top_shows_the_speed_and_the_time_since_the_look_before(busy: ScriptedServer, client: Client) -> None:
    from lockstep.client.cli.top import Watcher

    busy.on("GetLedger", a_ledger(), a_ledger(), a_ledger(steps=190, factor=2.0))
    watcher = Watcher(client)
    speeds = [watcher.look().jobs[0].samples_per_second() for _ in range(3)]
    assert speeds == pytest.approx([100 * 256 / 90, 100 * 256 / 90, 90 * 256 / 90])
    view = watcher.look().jobs[0]
    assert (view.lately()["start_up"], view.lately()["forward"]) == (0, 70)


def test_top_says_when_no_job_runs_and_why_none_can_start(server: ScriptedServer, lockstep: Any) -> None:
    server.on("ListJobs", ListJobsResponse())
    server.on("ListNodes", nodes())
    server.on("GetCluster", cluster_service_pb2.Cluster(not_ready_reason="no launcher is in service yet"))
    code, out, err = lockstep("top")
    assert (code, err) == (0, "")
    assert "not ready: no launcher is in service yet" in out
    assert "no jobs run or wait" in out


def test_top_goes_on_showing_what_it_has_while_the_server_is_away(
    busy: ScriptedServer, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    from lockstep.client.cli import output
    from lockstep.client.cli.top import Watcher
    from lockstep.client.cli.top_screen import screen

    view = Watcher(client).look()
    output.console().print(screen(view.stale("no server answers")))
    shown = capsys.readouterr().out
    assert f"shown as of {output.clock(view.time)}: no server answers" in shown
    assert "raptor" in shown


def test_top_goes_on_by_itself_on_a_terminal_until_it_is_told_to_end(busy: ScriptedServer) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "from lockstep.client.cli import main; main()",
        "--target",
        busy.target,
        "top",
        "-i",
        "0.2",
    ]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while len(busy.requests["GetCluster"]) < 4:
            shown += os.read(ours, 65536)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # its end of the terminal is closed
                break
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b"Traceback" not in shown
