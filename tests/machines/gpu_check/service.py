"""The whole service: a server with an embedded Ray trains on the device, as a user has it."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lockstep.client import Client, Job
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge, not_run, the_same

COMMAND = [sys.executable, "-c", "from lockstep.client.cli import main; main()"]
START_TIMEOUT_S, JOB_TIMEOUT_S = 60, 60
CPUS = 2
WARM_STARTS = 3
EVERY = 100
"""Steps between two checkpoints of the job whose worker is killed."""


@contextlib.contextmanager
def server(folder: Path, gpus: int) -> Iterator[str]:
    """Run `lockstep serve` on free ports; yields its address."""
    folder.mkdir()
    options = ["--data-dir", str(folder), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    options += ["--num-cpus", str(CPUS), "--num-gpus", str(gpus)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*COMMAND, "serve", *options], stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"the cluster is ready" not in (folder / "server.log").read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.05)
        yield json.loads((folder / "server.json").read_text())["grpc_address"]
    finally:
        process.terminate()
        process.wait()


def spec_of(plan: Plan, data: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "name": "gpu-check",
        "model": {"mlp": {"hidden_units": [64], "dropout": [0.2]}},
        "data": data,
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.9}},
        "training": {"max_steps": 100, "batch_size": 128, "log_every_steps": 10} | training,
        "resources": {"gpus_per_worker": int(plan.is_gpu)},
    }


def check(plan: Plan) -> Iterator[Row]:
    """Jobs one after another on one worker."""
    images = {"idx": {"root": plan.work("softmax_regression").folder}}
    with server(plan.folder / "service", int(plan.is_gpu)) as address, Client(address) as client:
        yield attempt("first points", partial(starts, plan, client, images))
        yield attempt("made-up images", partial(again, "made-up images", client, spec_of(plan, images)))
        if importlib.util.find_spec("sklearn") is None:
            yield not_run("digits, two jobs", "scikit-learn is not installed")
        else:
            digits = spec_of(plan, {"builtin": {"name": "digits"}})
            yield attempt("digits, two jobs", partial(again, "digits", client, digits))
        long = spec_of(plan, images, max_steps=plan.service_steps)
        yield attempt("the only worker of a job killed", partial(killed, client, long))
        yield attempt("lockstep nodes", partial(nodes, plan, address))


def first_point(client: Client, spec: dict[str, Any]) -> float:
    """Seconds from the submit to the first metric point in the client's hands."""
    began = time.perf_counter()
    job = client.submit_job(spec)
    next(iter(job.metrics(follow=True)))
    took_s = time.perf_counter() - began
    finish(job)
    return took_s


def finish(job: Job) -> Job:
    """Wait for a job; one that does not succeed is told with its error."""
    return job.wait(timeout_s=JOB_TIMEOUT_S)


def starts(plan: Plan, client: Client, images: dict[str, Any]) -> Row:
    """From the submit to the first point, on a new worker and on warm ones."""
    spec = spec_of(plan, images, max_steps=20, log_every_steps=1)
    cold_s, *warm_s = [first_point(client, spec) for _ in range(1 + WARM_STARTS)]
    seen = f"{cold_s:.2f} s, then {', '.join(f'{took_s:.3f}' for took_s in warm_s)} s"
    return Row("submit to first point, first job and next ones", seen, figures={"cold_s": cold_s, "warm_s": warm_s})


def again(name: str, client: Client, spec: dict[str, Any]) -> Row:
    """Two jobs of one spec: the same weights and the same points."""
    outcomes = {}
    for time_of in ("first job", "second job"):
        job = finish(client.submit_job(spec))
        assert job.result is not None
        outcomes[time_of] = f"{job.result.weights_digest} {hash(repr(job.metrics(kind='RESULT')))}"
    row = the_same(f"{name}, two jobs", outcomes)
    row.figures["hardware"] = job.hardware_class
    return row


def killed(client: Client, spec: dict[str, Any]) -> Row:
    """A job whose only worker is killed has the digest of one that was left alone."""
    spec["recovery"] = {"checkpoint_every_steps": EVERY}
    undisturbed = finish(client.submit_job(spec))
    job = client.submit_job(spec)
    was_killed = False
    for point in job.metrics(follow=True):
        if not was_killed and point.step >= 2 * EVERY:
            pids = [w.pid for node in client.list_nodes() for w in node.workers if w.job_id == job.job_id and w.pid]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            was_killed = bool(pids)
    finish(job)
    assert job.result is not None and undisturbed.result is not None
    outcomes = {"undisturbed": undisturbed.result.weights_digest, "killed": job.result.weights_digest}
    row = the_same("the only worker of a job killed", outcomes)
    if not was_killed or not job.restarts + job.heals:
        return judge(row.check, False, "the worker was not killed in time", "killed, and one digest", row.details)
    row.figures["events"] = [str(event) for event in job.events()]
    return row


def nodes(plan: Plan, address: str) -> Row:
    """`lockstep nodes` shows the node and its GPU."""
    command = [*COMMAND, "--target", address, "nodes"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | {"COLUMNS": "200"})
    is_right = shown.returncode == 0 and ("GPU" in shown.stdout or not plan.is_gpu)
    lines = (shown.stdout + shown.stderr).splitlines()
    wanted = "the node and its GPU" if plan.is_gpu else "the node"
    return judge("lockstep nodes", is_right, f"{len(lines)} lines", wanted, lines, text=lines)
