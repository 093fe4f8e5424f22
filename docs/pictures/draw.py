"""Draw the pictures of docs/observability.md: a real server, real jobs, a real Prometheus.

    pip install matplotlib && python docs/pictures/draw.py [--data ../shared/data/mnist] [--only healthy]

A healthy job, and a sick one: after a while one of its workers is held up for half of the time, as on a machine that
somebody else uses too; later the other one is killed. Takes seven minutes on two cores.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT), str(ROOT / "benchmarks")]

from tests.support.prometheus import Prometheus  # noqa: E402

from lockstep.client import Client, Job  # noqa: E402
from serving import Server  # noqa: E402

# Rates look at a minute; what is drawn begins after it.
WARM_UP_S = 65.0
HEALTHY_S = 60.0
HELD_UP_AFTER_S, KILLED_AFTER_S, SICK_S = 40.0, 120.0, 180.0
PAUSE_S = 0.02
# Colours as on the boards.
PHASES = {
    "forward": "#1f9e51",
    "backward": "#56c271",
    "optimizer": "#a5d8b0",
    "data": "#e5c547",
    "host_to_device": "#e58f2a",
    "exchange": "#b07cc6",
    "exchange_wait": "#d64545",
}
LOSSES = ("#3274d9", "#e58f2a")
STRIP: dict[str, Any] = {"cmap": "Reds", "vmin": 0, "vmax": 60, "marker": "s", "s": 60}


def spec_of(data: Path) -> dict[str, Any]:
    return {
        "name": "lenet-mnist",
        "model": {"lenet": {"activation": "relu", "pooling": "max"}},
        "data": {"idx": {"root": str(data)}},
        "optimizer": {"sgd": {"learning_rate": 0.05}},
        "training": {"max_epochs": 1000, "batch_size": 256, "log_every_steps": 10, "evaluate_every_steps": 2000},
        "resources": {"workers": 2},
    }


@contextmanager
def held_up(pid: int) -> Iterator[None]:
    """Stop a process for half of the time."""
    is_over = threading.Event()

    def hold() -> None:
        while not is_over.wait(PAUSE_S):
            os.kill(pid, signal.SIGSTOP)
            is_over.wait(PAUSE_S)
            os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        os.kill(pid, signal.SIGCONT)


def pid_of(client: Client, job: Job, rank: int) -> int:
    """The process of a rank, as soon as it is known."""
    while True:
        for node in client.list_nodes():
            for worker in node.workers:
                if worker.job_id == job.job_id and worker.rank == rank and worker.pid:
                    return worker.pid
        time.sleep(0.5)


def run_healthy(client: Client, spec: dict[str, Any]) -> tuple[str, float, float]:
    """Train for a while; the job and when."""
    job = client.submit_job(spec)
    pid_of(client, job, 0)
    time.sleep(WARM_UP_S)
    began = time.time()
    time.sleep(HEALTHY_S)
    ended = time.time()
    job.cancel()
    return job.job_id, began, ended


def run_sick(client: Client, spec: dict[str, Any]) -> tuple[str, float, float]:
    """Train while one rank is held up, and kill the other one; the job and when."""
    job = client.submit_job(spec)
    slow, lost = pid_of(client, job, 1), pid_of(client, job, 0)
    time.sleep(WARM_UP_S)
    began = time.time()
    time.sleep(HELD_UP_AFTER_S)
    with held_up(slow):
        time.sleep(KILLED_AFTER_S - HELD_UP_AFTER_S)
    os.kill(lost, signal.SIGKILL)
    time.sleep(SICK_S - KILLED_AFTER_S)
    ended = time.time()
    job.cancel()
    return job.job_id, began, ended


def over_time(prometheus: Prometheus, expr: str, began: float, ended: float) -> list[dict[str, Any]]:
    """What a query returned, second by second."""
    asked = urllib.parse.urlencode({"query": expr, "start": began, "end": ended, "step": 1})
    with urllib.request.urlopen(f"{prometheus.url}/api/v1/query_range?{asked}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def draw(prometheus: Prometheus, run: tuple[str, float, float], title: str, path: Path) -> None:
    """The loss of a job, its speed, where the time of its steps went, and which rank waited for the others."""
    job_id, began, ended = run
    figure, (loss, speed, phases, ranks) = plt.subplots(
        4, 1, figsize=(9, 8), sharex=True, height_ratios=(2, 2, 3, 1), layout="constrained"
    )
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    of_job = f'job_id="{job_id}"'

    def series(expr: str, label: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            found["metric"].get(label, ""): (
                [moment - began for moment, _ in found["values"]],
                [float(value) for _, value in found["values"]],
            )
            for found in over_time(prometheus, expr, began, ended)
        }

    losses = f'lockstep_job_metric{{{of_job},name=~"train_loss|val_loss"}}'
    for (name, (seconds, values)), color in zip(sorted(series(losses, "name").items()), LOSSES, strict=False):
        loss.plot(seconds, values, color=color, label=name)
    loss.set_title("Loss", loc="left", fontsize=10)
    loss.set_ylim(bottom=0)
    loss.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)

    for seconds, values in series(f"job:lockstep_samples:rate1m{{{of_job}}}", "job_id").values():
        speed.plot(seconds, values, color="#3274d9")
    speed.set_title("Samples per second", loc="left", fontsize=10)
    speed.set_ylim(bottom=0)

    shares = series(f"job:lockstep_step_phase:ratio_rate1m{{{of_job}}}", "phase")
    known = {phase: dict(zip(*shares[phase], strict=True)) for phase in PHASES if phase in shares}
    moments = sorted({moment for values in known.values() for moment in values})
    stacked = [[100 * values.get(moment, 0.0) for moment in moments] for values in known.values()]
    phases.stackplot(moments, stacked, labels=list(known), colors=[PHASES[phase] for phase in known])
    phases.set_title("Where the time of a step goes, %", loc="left", fontsize=10)
    phases.set_ylim(0, 100)
    phases.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, reverse=True, frameon=False)

    waits = series(f'rank:lockstep_step_phase:ratio_rate1m{{{of_job},phase="exchange_wait"}}', "rank")
    for place, (_, (seconds, values)) in enumerate(sorted(waits.items())):
        picture = ranks.scatter(seconds, [place] * len(seconds), c=[100 * value for value in values], **STRIP)
    ranks.set_yticks(range(len(waits)), [f"rank {rank}" for rank in sorted(waits)])
    ranks.set_ylim(-0.6, len(waits) - 0.4)
    ranks.set_title("Waits for others: dark is much; who waits least holds the others up", loc="left", fontsize=10)
    ranks.set_xlabel("seconds")
    bar = figure.colorbar(picture, cax=ranks.inset_axes((1.02, 0.0, 0.02, 1.0)), ticks=(0, 30, 60))
    bar.ax.tick_params(labelsize=8)
    bar.set_label("% of its time", fontsize=8)

    for heal in over_time(prometheus, f"changes(lockstep_job_heals_total{{{of_job}}}[5s]) > 0", began, ended):
        for axis in (loss, speed, phases):
            axis.axvline(float(heal["values"][0][0]) - began, color="black", linestyle="--", linewidth=1)
        speed.annotate("healed", (float(heal["values"][0][0]) - began, speed.get_ylim()[1] * 0.9), fontsize=8)
    figure.savefig(path, dpi=90)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mnist")
    parser.add_argument("--only", choices=("healthy", "sick"), help="draw this picture alone")
    options = parser.parse_args()
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), 2)
        server.start()
        try:
            page = json.loads((Path(folder) / "server.json").read_text())["http_address"]
            store = Path(folder) / "prometheus"
            store.mkdir()
            with Prometheus(store, page) as prometheus, Client(server.target) as client:
                spec = spec_of(options.data.resolve())
                for name, play in (("healthy", run_healthy), ("sick", run_sick)):
                    if options.only in (None, name):
                        draw(prometheus, play(client, spec), f"A {name} job", here / f"{name}.png")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
