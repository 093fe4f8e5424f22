"""How far behind a job its followers are when there are many, and what they leave to everybody else.

    python benchmarks/followers.py [--followers 1000] [--points 60] [--seconds 8] [--rounds 3]

A real server; the job's rank 0 is played and reports every 0.1 s, as a real one does, with the time of the report as
the points' value. The followers live in processes of their own and share the machine's cores with the server. Peer, in
turns with them in the same run: as many followers that ask ListMetrics for what is new once a second, since that is how
a curve is followed without streams.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import psutil

from lockstep.v1.job_service_pb2 import GetJobRequest
from lockstep.v1.job_service_pb2_grpc import JobServiceStub
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import METRIC_KIND_RESULT, ListMetricsRequest, MetricPoint, StreamMetricsRequest
from lockstep.v1.metrics_service_pb2_grpc import MetricsServiceStub
from played_cluster import PlayedJob, PlayedServer, played_server

PROCESSES = 2
STREAMS_PER_CONNECTION = 50
REPORT_EVERY_S = 0.1
POLL_EVERY_S = 1.0
GET_EVERY_S = 0.02
ALLOWED_LAG_S, ALLOWED_GET_S = 0.25, 0.05
ALONE = (("grpc.use_local_subchannel_pool", 1),)
SPEC = JobSpec(
    model={"softmax_regression": {}},
    data={"builtin": {"name": "digits"}},
    optimizer={"sgd": {"learning_rate": 0.1}},
    training={"max_steps": 1_000_000},
)


@dataclass(frozen=True)
class Outcome:
    """One round: lags and times of GetJob in seconds, cores that the server used, points that were seen of all sent."""

    lags: list[float]
    gets: list[float]
    cores: float
    seen: float


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies; infinite where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")


def follow(
    target: str, job_id: str, first_step: int, count: int, way: str, ready: Any, ends: Any, results: Any
) -> None:
    """In a process of its own: follow a job `count` times and say how late each point came."""

    async def run() -> None:
        lags: list[float] = []
        waiting = set(range(count))
        all_are_here = asyncio.Event()
        channels = [grpc.aio.insecure_channel(target, ALONE) for _ in range(-(-count // STREAMS_PER_CONNECTION))]
        stubs = [MetricsServiceStub(channels[number // STREAMS_PER_CONNECTION]) for number in range(count)]

        def note(number: int, points: Any) -> int:
            now, newest = time.time(), 0
            for point in points:
                newest = max(newest, point.step)
                if point.step >= first_step:
                    lags.append(now - point.value)
            if newest >= first_step - 1 and waiting:
                waiting.discard(number)
                if not waiting:
                    all_are_here.set()
            return newest

        async def stream(number: int) -> None:
            async for response in stubs[number].StreamMetrics(StreamMetricsRequest(job_id=job_id)):
                note(number, response.points)

        async def poll(number: int) -> None:
            step = first_step - 2
            await asyncio.sleep(POLL_EVERY_S * number / count)
            while True:
                began = time.monotonic()
                request = ListMetricsRequest(job_id=job_id, after_step=step)
                step = max(step, note(number, (await stubs[number].ListMetrics(request)).points))
                await asyncio.sleep(max(0.0, began + POLL_EVERY_S - time.monotonic()))

        tasks = [asyncio.create_task(stream(number) if way == "stream" else poll(number)) for number in range(count)]
        await all_are_here.wait()
        ready.release()
        await asyncio.to_thread(ends.wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()
        results.put(lags)

    asyncio.run(run())


def measure(server: PlayedServer, job: PlayedJob, step: int, options: argparse.Namespace, way: str) -> Outcome:
    """Report for a while to followers of one kind."""
    context = multiprocessing.get_context("spawn")
    ready, ends, results = context.Semaphore(0), context.Event(), context.Queue()
    count = options.followers // PROCESSES
    first_step = step + 1
    job.report(step, [MetricPoint(name="train_loss", step=step, value=0.0, kind=METRIC_KIND_RESULT)])
    processes = [
        context.Process(target=follow, args=(server.target, job.job_id, first_step, count, way, ready, ends, results))
        for _ in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    gets: list[float] = []
    over = threading.Event()

    def ask() -> None:
        with grpc.insecure_channel(server.target, ALONE) as channel:
            stub = JobServiceStub(channel)
            while not over.wait(GET_EVERY_S):
                began = time.perf_counter()
                stub.GetJob(GetJobRequest(job_id=job.job_id))
                gets.append(time.perf_counter() - began)

    asking = threading.Thread(target=ask)
    asking.start()
    cpu_s, began = server.cpu_s(), time.monotonic()
    per_report = max(1, round(options.points * REPORT_EVERY_S))
    sent, due = 0, began
    while time.monotonic() - began < options.seconds:
        now = time.time()
        job.report(
            first_step + sent + per_report,
            [
                MetricPoint(name="train_loss", step=first_step + sent + i, value=now, kind=METRIC_KIND_RESULT)
                for i in range(per_report)
            ],
        )
        sent += per_report
        due += REPORT_EVERY_S
        time.sleep(max(0.0, due - time.monotonic()))
    cores = (server.cpu_s() - cpu_s) / (time.monotonic() - began)
    over.set()
    asking.join()
    time.sleep(2.0)  # what is under way arrives
    ends.set()
    lags = [lag for _ in processes for lag in results.get()]
    for process in processes:
        process.join()
    return Outcome(lags, gets, cores, len(lags) / (sent * count * PROCESSES))


def show(name: str, outcome: Outcome) -> None:
    """Print a line."""
    print(
        f"  {name:24} lag p50 {1e3 * percentile(outcome.lags, 0.5):7.0f} ms  p99 "
        f"{1e3 * percentile(outcome.lags, 0.99):7.0f} ms   GetJob p50 {1e3 * percentile(outcome.gets, 0.5):6.1f} ms  "
        f"p99 {1e3 * percentile(outcome.gets, 0.99):6.1f} ms   {outcome.cores:4.2f} cores   {outcome.seen:4.0%} seen",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--followers", type=int, default=1000)
    parser.add_argument("--points", type=int, default=60, help="a second")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=["stream", "poll"])
    options = parser.parse_args()
    print(f"{options.followers:,} followers of a job with {options.points} points a second, {psutil.cpu_count()} cores")
    outcomes: dict[str, list[Outcome]] = {way: [] for way in options.ways}
    with played_server() as server:
        job = PlayedJob(server, SPEC)
        step = 1
        for _ in range(options.rounds):
            for way in options.ways:
                outcomes[way].append(measure(server, job, step, options, way))
                step += options.points * 3600
                show({"stream": "StreamMetrics", "poll": "a poll of ListMetrics"}[way], outcomes[way][-1])
        job.close()
    lag = statistics.median(percentile(outcome.lags, 0.99) for outcome in outcomes["stream"])
    get = statistics.median(percentile(outcome.gets, 0.99) for outcome in outcomes["stream"])
    if "poll" in outcomes:
        pairs = zip(outcomes["stream"], outcomes["poll"], strict=True)
        ratio = statistics.median(percentile(a.lags, 0.99) / percentile(b.lags, 0.99) for a, b in pairs)
        print(f"the lag p99 of a stream is {ratio:.2f}x that of a poll")
    is_well = lag < ALLOWED_LAG_S and get < ALLOWED_GET_S
    print(
        f"lag p99 {1e3 * lag:.0f} ms, GetJob p99 {1e3 * get:.0f} ms:",
        "within" if is_well else "NOT within",
        f"{1e3 * ALLOWED_LAG_S:.0f} and {1e3 * ALLOWED_GET_S:.0f} ms",
    )
    return 0 if is_well else 1


if __name__ == "__main__":
    raise SystemExit(main())
