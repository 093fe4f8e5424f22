"""How fast SubmitJob is acknowledged, with 1 and with 16 clients, beside a bare durable insert into SQLite.

    python benchmarks/submit.py [--submits 500]

A submit is acknowledged when the job is on disk. The peer is Python's sqlite3 with the same settings (WAL,
synchronous=FULL), in the same folder, one commit per row: what the disk alone takes. The clients run in two processes
on the same cores as the server. A job that does not end holds the cluster meanwhile, so that nothing trains.
"""

import argparse
import multiprocessing
import sqlite3
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lockstep.client import Client
from serving import server

SPEC: dict[str, Any] = {
    "model": {"softmax_regression": {}},
    "data": {"builtin": {"name": "digits"}},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
    "training": {"max_steps": 1_000_000_000, "log_every_steps": 1_000_000},
    "labels": {"benchmark": "submit"},
}
PROCESSES = 2
CLIENTS = 16


def latencies(address: str, submits: int) -> list[float]:
    """Seconds that each of `submits` submits of one client took."""
    times = []
    with Client(address) as client:
        client.submit_job(SPEC)  # connects
        for _ in range(submits):
            began = time.perf_counter()
            client.submit_job(SPEC)
            times.append(time.perf_counter() - began)
    return times


def latencies_of_threads(address: str, threads: int, submits: int) -> list[float]:
    """The same for several clients in one process."""
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda _: latencies(address, submits), range(threads))
        return [seconds for result in results for seconds in result]


def sqlite_inserts(folder: Path, inserts: int) -> list[float]:
    """Seconds that each durable insert of a row of the size of a job took."""
    connection = sqlite3.connect(folder / "peer.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, spec BLOB)")
    times = []
    for _ in range(inserts):
        began = time.perf_counter()
        connection.execute("INSERT INTO jobs (spec) VALUES (?)", (bytes(1000),))
        times.append(time.perf_counter() - began)
    connection.close()
    return times


def show(name: str, times: list[float], wall_s: float, peer_p50_s: float) -> None:
    ordered = sorted(times)
    p50, p99 = statistics.median(ordered), ordered[int(0.99 * len(ordered))]
    print(
        f"  {name:24} {len(times) / wall_s:>7,.0f}/s   p50 {1e3 * p50:6.2f} ms   p99 {1e3 * p99:6.2f} ms   "
        f"{p50 / peer_p50_s:6.1f}x sqlite3",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submits", type=int, default=500)
    submits = parser.parse_args().submits
    with server(num_cpus=1) as running, Client(running.target) as client:
        holder = client.submit_job(SPEC)
        next(update for update in holder.watch() if update.job.state == "RUNNING")
        print("durable SubmitJob")
        for _ in range(3):
            began = time.perf_counter()
            peer = sqlite_inserts(running.data_dir, submits)
            peer_p50 = statistics.median(peer)
            show("sqlite3, one commit each", peer, time.perf_counter() - began, peer_p50)
            began = time.perf_counter()
            show("1 client", latencies(running.target, submits), time.perf_counter() - began, peer_p50)
            with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
                pool.starmap(latencies_of_threads, [(running.target, 1, 1)] * PROCESSES)  # imports
                began = time.perf_counter()
                arguments = (running.target, CLIENTS // PROCESSES, max(1, 2 * submits // CLIENTS))
                results = pool.starmap(latencies_of_threads, [arguments] * PROCESSES)
                times = [seconds for result in results for seconds in result]
                show(f"{CLIENTS} clients", times, time.perf_counter() - began, peer_p50)


if __name__ == "__main__":
    main()
