"""Jobs without end, and deaths without end: does anything get lost, bent or left behind?

    python benchmarks/soak.py [--minutes 20] [--seed 0]

A real server and real Ray. A stream of different small jobs runs while random workers, the launcher and the
coordinator get SIGKILL at random moments; jobs are paused, resumed and scaled between. Each job's digest and metric
points must be those of the same spec trained undisturbed, in this process, on one worker. Prints what was done and what
was wrong; exit status 1 if anything was.
"""

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil

from lockstep.client import Client, Job, JobState
from lockstep.client.errors import LockstepError
from lockstep.workers.engine import Listener, Point, Progress
from lockstep.workers.training import train
from serving import Server, server, workers_of

CPUS = 4
JOBS_AT_ONCE = 2
PAUSE = re.compile(r"healed.* after a pause of (\d+) ms")
DIGITS = {"builtin": {"name": "digits"}}
MODELS: list[dict[str, Any]] = [
    {"softmax_regression": {}},
    {"mlp": {"hidden_units": [64], "dropout": [0.3]}},
    {"mlp": {"hidden_units": [256, 128], "activation": "tanh"}},
]
# Large enough to be exchanged in buckets, and slower.
LARGE_MODEL = {"mlp": {"hidden_units": [1024, 1024]}}


class Recorder(Listener):
    """Keeps the points that depend on the spec alone."""

    def __init__(self) -> None:
        self.points: dict[tuple[str, int], float] = {}

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Keep them."""
        self.points |= {(point.name, point.step): point.value for point in points if not point.is_timing}


@dataclass
class Books:
    """What was done and what was wrong."""

    done: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    worst_pause_s: float = 0.0
    curves: dict[str, tuple[str, dict[tuple[str, int], float]]] = field(default_factory=dict)

    def audit(self, job: Job) -> None:
        """Compare a job that has ended with its undisturbed twin."""
        self.done["jobs finished"] += 1
        self.done["heals"] += job.heals
        self.done["restarts"] += job.restarts
        for event in job.events():
            if found := PAUSE.search(event.message):
                self.worst_pause_s = max(self.worst_pause_s, int(found.group(1)) / 1e3)
        if job.state is not JobState.SUCCEEDED or job.result is None:
            self.wrong["jobs failed"] += 1
            print(f"  {job.job_id} {job.state}: {job.error or job.state_reason}", flush=True)
            return
        digest, expected = self.undisturbed(job)
        points = [((point.name, point.step), point.value) for point in job.metrics(kind="RESULT")]
        self.wrong["digests wrong"] += job.result.weights_digest != digest
        self.wrong["points double"] += len(points) - len(dict(points))
        self.wrong["points missing"] += len(expected.keys() - dict(points).keys())
        self.wrong["points wrong"] += sum(expected.get(key) != value for key, value in dict(points).items())

    def undisturbed(self, job: Job) -> tuple[str, dict[tuple[str, int], float]]:
        """Digest and points of the same curve, trained here."""
        if job.curve_digest not in self.curves:
            recorder = Recorder()
            result = train(job.spec, None, recorder)
            self.curves[job.curve_digest] = result.weights_digest, recorder.points
        return self.curves[job.curve_digest]

    def print(self) -> None:
        """Print all of it."""
        for name, count in {**self.done, **self.wrong}.items():
            print(f"{name:20} {count:7}")
        print(f"{'worst pause':20} {self.worst_pause_s:7.3f} s")


def spec() -> dict[str, Any]:
    workers = random.randint(1, 3)
    model, epochs = random.choice([(model, [300, 1000, 2000]) for model in MODELS] + [(LARGE_MODEL, [20, 60])])
    return {
        "name": "soak",
        "model": model,
        "data": DIGITS,
        "optimizer": {"sgd": {"learning_rate": 0.05, "momentum": 0.9}},
        "training": {"max_epochs": random.choice(epochs), "batch_size": 100, "seed": random.randint(0, 1)},
        "resources": {"workers": workers, "min_workers": random.randint(1, workers), "shards": 4},
        # Deaths are drawn so often that all workers of a job may go many times.
        "recovery": {"checkpoint_every_steps": random.choice([50, 500]), "max_restarts": 1000},
    }


def patiently(call: Callable[[], Any]) -> Any:
    """Call the server, which may just have been killed, until it answers."""
    while True:
        try:
            return call()
        except LockstepError as error:
            if "FAILED_PRECONDITION" in str(error.code):  # the job has ended meanwhile
                return None
            time.sleep(0.1)


def not_idle(server: Server) -> list[psutil.Process]:
    """Worker processes, without those that are known to wait for a job; without a launcher all count."""
    with Client(server.target) as client:
        idle = {worker.pid for worker in patiently(lambda: workers_of(client)) if not worker.job_id}
    return [process for process in server.processes("ray::Worker") if process.pid not in idle]


def strike(server: Server, books: Books) -> None:
    """Kill something."""
    what = random.choices(["worker", "launcher", "coordinator"], [10, 2, 1])[0]
    if what == "coordinator":
        server.kill()
        time.sleep(random.random() * 3)
        server.start()
    else:
        victims = server.processes("lockstep.workers.launcher") if what == "launcher" else not_idle(server)
        if not victims:
            return
        random.choice(victims).kill()
    books.done[f"kills: {what}"] += 1


def meddle(job: Job, books: Books) -> None:
    """Pause and resume a job, or change its workers."""
    if random.random() < 0.5:
        patiently(job.pause)
        while patiently(job.refresh).state is JobState.PAUSING:
            time.sleep(0.1)
        patiently(job.resume)
        books.done["pauses"] += 1
    else:
        patiently(lambda: job.scale(random.randint(job.spec.resources.min_workers, 4)))
        books.done["resizes"] += 1


def soak(server: Server, minutes: float, books: Books) -> None:
    """Run jobs and strike until the time is over, then let the last jobs finish."""
    end = time.monotonic() + 60 * minutes
    running: list[str] = []
    while time.monotonic() < end or running:
        with Client(server.target) as client:
            while len(running) < JOBS_AT_ONCE and time.monotonic() < end:
                wanted, request_id = spec(), f"soak-{random.getrandbits(64)}"
                submitted = patiently(partial(client.submit_job, wanted, request_id=request_id))
                running.append(submitted.job_id)
            time.sleep(random.uniform(0.5, 7))
            for job_id in list(running):
                job = patiently(partial(client.get_job, job_id))
                if job.state.has_ended:
                    running.remove(job_id)
                    books.audit(job)
                elif time.monotonic() < end and random.random() < 0.1:
                    meddle(job, books)
        if time.monotonic() < end:
            strike(server, books)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    books = Books()
    with server(CPUS) as running:
        try:
            soak(running, options.minutes, books)
            deadline = time.monotonic() + 30
            while (leaked := not_idle(running)) and time.monotonic() < deadline:
                time.sleep(0.1)
            books.wrong["leaks: workers"] += len(leaked)
        except BaseException:
            print((running.data_dir / "server.log").read_text()[-20_000:])
            raise
        finally:
            books.print()
    left = running.processes()
    print(f"{'leaks: processes':20} {len(left):7}")
    return int(any(books.wrong.values()) or bool(left))


if __name__ == "__main__":
    sys.exit(main())
