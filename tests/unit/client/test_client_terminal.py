"""What others have written, shown on a terminal: nothing of it steers the terminal, and nothing that matters is cut."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
import yaml
from rich.text import Text

from lockstep.client.cli import output
from lockstep.client.cli.top_screen import Flowing
from lockstep.v1 import catalog_service_pb2, cluster_service_pb2
from lockstep.v1.job_pb2 import Job
from lockstep.v1.job_service_pb2 import ListJobsResponse
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.ledger_pb2 import Ledger
from lockstep.v1.log_service_pb2 import LogLine, StreamLogsResponse
from lockstep.v1.metrics_service_pb2 import ListMetricsResponse
from tests.support.scripted_server import (
    Refusal,
    ScriptedServer,
    a_checkpoint,
    a_job,
    a_point,
    an_update,
    checkpoints,
    points,
)
from tests.support.specs import DIGITS

# A title, a colour by a C1 control, a turn of the direction, and a bell.
EVIL = "a\x1b]0;title\x07b\x9b31mc\u202ed\u2066e"
STEERS = ("\x1b]", "\x07", "\x9b", "\u202e", "\u2066")


def an_evil_job(state: str = "FAILED") -> Job:
    spec = JobSpec(name=EVIL, labels={"note": EVIL}, model={"mlp": {"activation": EVIL}})
    job = a_job(state, job_id=EVIL, spec=spec, state_reason=EVIL, hardware_class=EVIL, engine_version=EVIL, attempt=1)
    job.error.message = job.error.reason = job.error.field = job.error.traceback = EVIL
    job.curve_digest = EVIL
    return job


@pytest.fixture
def evil(server: ScriptedServer) -> ScriptedServer:
    """A server all of whose words are meant to harm."""
    job = an_evil_job()
    server.on("GetJob", job)
    server.on("SubmitJob", job)
    server.on("CancelJob", Refusal(grpc.StatusCode.FAILED_PRECONDITION, EVIL))
    server.on("ListJobs", ListJobsResponse(jobs=[job, an_evil_job("RUNNING")]))
    server.on("WatchJob", [an_update("FAILED", (1, EVIL), job_id=EVIL, error={"message": EVIL, "traceback": EVIL})])
    server.on("ListMetrics", ListMetricsResponse(points=[a_point(EVIL, 1, 0.5)]))
    server.on("StreamMetrics", [points("c", a_point(EVIL, 1, 0.5))])
    server.on("StreamLogs", [StreamLogsResponse(lines=[LogLine(text=EVIL)], cursor="c")])
    server.on("GetLedger", Ledger())
    evil_checkpoint = a_checkpoint(5)
    evil_checkpoint.uri = evil_checkpoint.weights_digest = EVIL
    server.on("ListCheckpoints", checkpoints(evil_checkpoint))
    entry = catalog_service_pb2.CatalogEntry(name=EVIL, description=EVIL, tasks=[EVIL])
    entry.parameters.add(name=EVIL, type=EVIL, limits=EVIL, default_json=json.dumps(EVIL))
    server.on("ListModels", catalog_service_pb2.ListModelsResponse(models=[entry]))
    server.on("GetCluster", cluster_service_pb2.Cluster(not_ready_reason=EVIL))
    node = cluster_service_pb2.Node(node_id=EVIL, name=EVIL, total={"cpus": 1.0}, usable={"cpus": 1.0})
    node.workers.add(job_id=EVIL, pid=1)
    server.on("ListNodes", cluster_service_pb2.ListNodesResponse(nodes=[node]))
    return server


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, server: ScriptedServer, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-c", "from lockstep.client.cli import main; main()", *arguments]
        environment = os.environ | {"LOCKSTEP_TARGET": server.target, "TERM": "xterm"}
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._shown = b""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                block = os.read(self._ours, 65536)
            except OSError:  # its end of the terminal is closed
                return
            with self._changed:
                self._shown += block
                self._changed.notify_all()

    def wait_for(self, words: str) -> None:
        """Return when it has shown these words."""
        with self._changed:
            assert self._changed.wait_for(lambda: words.encode() in self._shown, 60), self._shown

    def end(self) -> str:
        """Everything that it has shown when it has ended."""
        self.process.wait(60)
        self._reader.join(60)
        return self._shown.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.end()
        os.close(self._ours)


def on_a_terminal(server: ScriptedServer, *arguments: str) -> str:
    """Everything that a command shows on a terminal."""
    with Terminal(server, *arguments) as terminal:
        return terminal.end()


COMMANDS = [
    ["ls"],
    ["ls", "-o", "json"],
    ["get", "j"],
    ["get", "j", "-o", "yaml"],
    ["describe", "j"],
    ["watch", "j"],
    ["wait", "j"],
    ["cancel", "j"],
    ["metrics", "j"],
    ["metrics", "j", "-o", "csv"],
    ["metrics", "j", "-o", "json"],
    ["metrics", "j", "-f"],
    ["metrics", "j", "-f", "-o", "csv"],
    ["metrics", "j", "-f", "-o", "json"],
    ["logs", "j"],
    ["checkpoints", "j"],
    ["checkpoints", "j", "-o", "json"],
    ["models"],
    ["models", "-o", "json"],
    ["nodes"],
    ["nodes", "-o", "json"],
    ["top", "--once"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_that_others_wrote_steers_a_terminal(evil: ScriptedServer, command: list[str]) -> None:
    shown = on_a_terminal(evil, *command)
    assert "title" in shown  # so that it was shown at all
    assert [control for control in STEERS if control in shown] == []
    assert "Traceback" not in shown


def test_a_job_that_is_followed_steers_no_terminal_either(evil: ScriptedServer, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(DIGITS))
    evil.on("SubmitJob", a_job(job_id=EVIL))
    shown = on_a_terminal(evil, "submit", "-f", str(tmp_path / "job.yaml"), "--follow")
    assert "title" in shown
    assert [control for control in STEERS if control in shown] == []


def test_data_in_a_pipe_is_what_the_server_has(evil: ScriptedServer, lockstep: Any) -> None:
    assert lockstep("metrics", "j", "-o", "csv")[1].splitlines()[1].startswith(EVIL)
    assert json.loads(lockstep("get", "j")[1])["spec"]["name"] == EVIL
    assert yaml.safe_load(lockstep("get", "j", "-o", "yaml")[1])["spec"]["labels"] == {"note": EVIL}


@pytest.mark.parametrize("command", [["describe", "j"], ["logs", "j"], ["watch", "j"], ["nodes"], ["ls"], ["get", "j"]])
def test_what_is_for_people_is_harmless_behind_a_pager_too(
    evil: ScriptedServer, lockstep: Any, command: list[str]
) -> None:
    _, out, err = lockstep(*command)
    assert [control for control in (*STEERS, "\x1b") if control in out + err] == []


def test_what_goes_to_a_file_is_neither_wrapped_nor_padded(
    server: ScriptedServer, lockstep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    update = an_update("RUNNING", (1, "training " * 30), attempt=1, progress={"step": 5})
    server.on("GetJob", update.job)
    server.on("WatchJob", [update])
    server.on("GetLedger", Ledger())
    checkpoint = a_checkpoint(5)
    checkpoint.uri = f"/{'long-name-of-a-folder/' * 10}step-000000000005"
    server.on("ListCheckpoints", checkpoints(checkpoint))
    code, out, _ = lockstep("describe", "j-1")
    assert code == 0
    assert checkpoint.uri in out
    assert [line for line in out.splitlines() if line != line.rstrip()] == []


def test_top_in_80_columns_keeps_ids_names_and_remarks_whole(server: ScriptedServer, lockstep: Any) -> None:
    running = a_job("RUNNING", "job-0123456789ab", spec=JobSpec(name="digits-mlp"), attempt=1, running_workers=2)
    running.spec.resources.workers, running.progress.step, running.progress.total_steps = 2, 50, 200
    waiting = a_job("QUEUED", "job-ba9876543210", spec=JobSpec(name="lenet"))
    waiting.state_reason = "waits for resources: 4 workers x 1 CPU, behind 2 other jobs"

    def by_state(request: Any) -> ListJobsResponse:
        found = [job for job in (running, waiting) if job.state in request.states]
        return ListJobsResponse(jobs=found)

    server.on("ListJobs", by_state)
    server.on("GetLedger", Ledger())
    server.on("GetCluster", cluster_service_pb2.Cluster(is_ready=True, nodes=1))
    node = cluster_service_pb2.Node(node_id="n", name="raptor", total={"cpus": 8.0, "gpus": 1.0})
    node.usable.CopyFrom(node.total)
    worker = node.workers.add(job_id="job-0123456789ab", attempt=1, number=0, rank=0, gpu_indexes=[0], pid=3)
    worker.state = cluster_service_pb2.WORKER_STATE_WORKING
    gpu = node.telemetry.gpus.add(index=0, name="NVIDIA H200", sm_active_ratio=0.01, power_watts=120.4)
    gpu.temperature_celsius, gpu.memory_used_bytes, gpu.memory_total_bytes = 41.0, 4 << 30, 140 << 30
    server.on("ListNodes", cluster_service_pb2.ListNodesResponse(nodes=[node]))
    code, out, err = lockstep("top", "--once")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in out
    device = next(line for line in lines if "GPU 0 NVIDIA H200" in line)
    assert device.endswith("job-0123456789ab rank 0  held but idle")
    job = next(line for line in lines if line.startswith("job-0123456789ab"))
    assert job.split() == ["job-0123456789ab", "digits-mlp", "RUNNING", "2/2", *job.split()[4:]]
    assert "25%" in job
    assert f"job-ba9876543210: {waiting.state_reason}" in lines


def test_a_path_that_is_longer_than_a_line_is_shown_in_one_piece_on_a_terminal(server: ScriptedServer) -> None:
    update = an_update("RUNNING", (1, "training"), attempt=1, progress={"step": 5})
    server.on("GetJob", update.job)
    server.on("WatchJob", [update])
    server.on("GetLedger", Ledger())
    checkpoint = a_checkpoint(5)
    checkpoint.uri = f"/{'long-name-of-a-folder/' * 10}step-000000000005"
    server.on("ListCheckpoints", checkpoints(checkpoint))
    assert checkpoint.uri in on_a_terminal(server, "describe", "j-1")


def test_the_pieces_of_the_head_and_the_legend_of_top_are_not_broken(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [Text(f"{number} held by jobs") for number in range(12)]
    output.console().print(Flowing(*pieces))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [piece for line in lines for piece in line.split("  ")] == [piece.plain for piece in pieces]
