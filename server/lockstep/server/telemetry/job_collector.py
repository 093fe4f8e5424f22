"""What Prometheus is told of jobs, one by one: those that live, and those that ended not long ago."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from prometheus_client.core import HistogramMetricFamily, Metric

from lockstep.contract.facts import PHASES, STEP_BOUNDS_S
from lockstep.server.jobs.job import Job, State
from lockstep.server.ledger.ledger import SILENT_S, RankAccount
from lockstep.server.telemetry.families import Row, counter, gauge
from lockstep.server.telemetry.snapshot import JobView, Snapshot

_JOB = ["job_id"]
_RANK = ["job_id", "rank"]


def collect_jobs(snapshot: Snapshot) -> Iterator[Metric]:
    """Yield what is told of jobs."""
    yield gauge(
        "lockstep_jobs",
        "Jobs in the store, by state.",
        ["state"],
        (([state.value.lower()], count) for state, count in snapshot.states.items()),
    )
    yield gauge("lockstep_queue_depth", "Jobs that wait for resources.", [], [([], snapshot.queue_depth)])
    yield gauge(
        "lockstep_queue_oldest_wait_seconds",
        "How long the job that has waited for longest has waited by now; 0 when none waits.",
        [],
        [([], snapshot.oldest_wait_s)],
    )
    yield from _about(snapshot.jobs)
    yield from _progress(snapshot.jobs)
    placed = [view for view in snapshot.jobs if view.job.attempt]
    yield from _workers(placed)
    yield from _ledgers(placed, snapshot)
    yield _step_durations(placed)


def _about(jobs: Iterable[JobView]) -> Iterator[Metric]:
    yield gauge(
        "lockstep_job_info",
        "Always 1; its labels tell what the job is.",
        ["job_id", "name", "model", "data", "owner", "device", "precision"],
        (([view.job.job_id, *_facts(view.job)], 1) for view in jobs),
    )
    yield gauge(
        "lockstep_job_state",
        "1 for the state that the job is in, 0 for every other.",
        ["job_id", "state"],
        (([view.job.job_id, state.value.lower()], float(view.job.state is state)) for view in jobs for state in State),
    )
    yield _times("create", "When the job was submitted", jobs, lambda view: view.job.create_time)
    yield _times("start", "When the job began to train in its newest attempt", jobs, lambda view: view.job.start_time)
    yield gauge(
        "lockstep_job_end_timestamp_seconds",
        "When the job ended, in seconds since 1970, with its last state and, if it failed, the reason.",
        ["job_id", "state", "reason"],
        (
            ([job.job_id, job.state.value.lower(), job.error.reason if job.error is not None else ""], time.timestamp())
            for job in (view.job for view in jobs)
            if (time := job.end_time) is not None
        ),
    )


def _facts(job: Job) -> list[str]:
    spec = job.spec
    device = "gpu" if spec.resources.gpus_per_worker else "cpu"
    precision = spec.training.precision or "fp32"  # specs of earlier versions do not say
    kinds = [part.WhichOneof("kind") or "" for part in (spec.model, spec.data)]
    return [spec.name, *kinds, job.owner, device, precision]


def _progress(jobs: Iterable[JobView]) -> Iterator[Metric]:
    started = [view for view in jobs if view.job.progress.total_steps]
    numbers: list[tuple[str, str, Callable[[Job], float]]] = [
        (
            "progress_ratio",
            "Steps that are done of all steps, 0 to 1.",
            lambda job: job.progress.step / job.progress.total_steps,
        ),
        ("step", "Steps that are done.", lambda job: job.progress.step),
        ("total_steps", "Steps in all.", lambda job: job.progress.total_steps),
        ("epoch", "Epochs that are done, with the fraction of the current one.", lambda job: job.progress.epoch),
    ]
    for name, text, read in numbers:
        yield gauge(f"lockstep_job_{name}", text, _JOB, (([view.job.job_id], read(view.job)) for view in started))
    yield gauge(
        "lockstep_job_metric",
        "Newest value of each result metric; the whole curve is in the store.",
        ["job_id", "name"],
        (([view.job.job_id, name], value) for view in jobs for name, value in view.record.metrics.items()),
    )
    kept = [view for view in jobs if view.job.newest_checkpoint is not None]
    yield gauge(
        "lockstep_job_checkpoint_step",
        "Step of the newest checkpoint.",
        _JOB,
        (([view.job.job_id], view.job.newest_checkpoint or 0) for view in kept),
    )
    yield gauge(
        "lockstep_job_checkpoint_interval_steps",
        "Steps between two checkpoints, as the job wants them.",
        _JOB,
        (([view.job.job_id], view.job.spec.recovery.checkpoint_every_steps) for view in jobs),
    )
    yield _times("checkpoint", "When the newest checkpoint was written", kept, lambda view: view.record.checkpoint_time)


def _times(name: str, text: str, jobs: Iterable[JobView], read: Callable[[JobView], datetime | None]) -> Metric:
    return gauge(
        f"lockstep_job_{name}_timestamp_seconds",
        f"{text}, in seconds since 1970.",
        _JOB,
        (([view.job.job_id], time.timestamp()) for view in jobs if (time := read(view)) is not None),
    )


def _workers(jobs: Iterable[JobView]) -> Iterator[Metric]:
    yield gauge(
        "lockstep_job_workers",
        "Workers that the job wants, that it was given (held), and that train (running).",
        ["job_id", "state"],
        (
            ([view.job.job_id, state], count)
            for view in jobs
            for state, count in (
                ("wanted", 0 if view.job.state.has_ended else view.job.spec.resources.workers),
                ("held", view.held_workers),
                ("running", view.job.running_workers),
            )
        ),
    )
    yield counter(
        "lockstep_job_heals",
        "How often training went on without a worker that was lost.",
        _JOB,
        (([view.job.job_id], view.job.heals) for view in jobs),
    )
    yield counter(
        "lockstep_job_restarts",
        "Attempts that were lost with all of their workers.",
        _JOB,
        (([view.job.job_id], view.job.restarts) for view in jobs),
    )


def _ledgers(jobs: list[JobView], snapshot: Snapshot) -> Iterator[Metric]:
    """What the workers' own accounts tell."""
    yield counter(
        "lockstep_phase_seconds",
        "Time of a rank by phase; the phases do not overlap, and add up to the time that it was there.",
        ["job_id", "rank", "phase"],
        (
            ([view.job.job_id, str(rank), phase], seconds)
            for view in jobs
            for rank, account in view.ledger.ranks.items()
            for phase, seconds in zip(PHASES, account.seconds, strict=True)
        ),
    )
    yield counter(
        "lockstep_worker_seconds",
        "Time of all workers of a job, by what it was spent for: productive, start_up, checkpoint, healing or idle.",
        ["job_id", "cause"],
        (
            ([view.job.job_id, cause], seconds)
            for view in jobs
            if view.ledger.ranks
            for cause, seconds in view.ledger.by_cause().items()
        ),
    )
    first = [(view, view.ledger.ranks[0]) for view in jobs if 0 in view.ledger.ranks]
    yield counter(
        "lockstep_steps",
        "Steps that were taken, those that were taken anew after a restart among them.",
        _JOB,
        (([view.job.job_id], account.steps) for view, account in first),
    )
    yield counter(
        "lockstep_samples",
        "Examples of the minibatches of these steps.",
        _JOB,
        (([view.job.job_id], account.examples) for view, account in first),
    )
    yield gauge(
        "lockstep_job_last_step_timestamp_seconds",
        "When the job was known to have taken a step last, in seconds since 1970; workers tell every 5 seconds.",
        _JOB,
        (([view.job.job_id], view.ledger.last_step_at) for view in jobs if view.ledger.last_step_at),
    )
    yield gauge(
        "lockstep_job_flops_per_step",
        "Floating-point operations of the matrix products and convolutions of one step, on all ranks.",
        _JOB,
        (([view.job.job_id], view.ledger.flops_per_step) for view in jobs if view.ledger.flops_per_step),
    )
    yield counter(
        "lockstep_worker_cpu_seconds",
        "Time that the process of a rank was busy on CPUs.",
        _RANK,
        _of_ranks(jobs, lambda account: account.cpu_seconds),
    )
    yield from _of_those_that_are_there(jobs, snapshot)


def _of_those_that_are_there(jobs: list[JobView], snapshot: Snapshot) -> Iterator[Metric]:
    now = snapshot.time.timestamp()
    there = [
        (view, str(rank), account)
        for view in jobs
        for rank, account in view.ledger.ranks.items()
        if account.is_there and now - account.heard_at < SILENT_S and view.job.state.has_workers
    ]
    names = snapshot.node_names
    devices = snapshot.devices
    yield gauge(
        "lockstep_worker_info",
        "Always 1; its labels tell where a rank runs: on which node, and on which GPUs or on CPUs.",
        ["job_id", "rank", "node", "device"],
        (
            (
                [
                    view.job.job_id,
                    rank,
                    names.get(account.node_id, account.node_id),
                    devices.get((view.job.job_id, account.attempt, account.number), "cpu"),
                ],
                1,
            )
            for view, rank, account in there
        ),
    )
    yield gauge(
        "lockstep_worker_cpus",
        "CPUs that a rank holds.",
        _RANK,
        (([view.job.job_id, rank], view.job.spec.resources.cpus_per_worker) for view, rank, _ in there),
    )
    yield gauge(
        "lockstep_worker_memory_bytes",
        "Memory of the process of a rank.",
        _RANK,
        (([view.job.job_id, rank], account.memory_bytes) for view, rank, account in there),
    )
    on_gpus = [entry for entry in there if entry[0].job.spec.resources.gpus_per_worker]
    yield gauge(
        "lockstep_worker_gpu_memory_bytes",
        "Most memory that the tensors of a rank took on its GPU, since its part in the attempt began.",
        _RANK,
        (([view.job.job_id, rank], account.gpu_memory_bytes) for view, rank, account in on_gpus),
    )


def _of_ranks(jobs: Iterable[JobView], read: Callable[[RankAccount], float]) -> Iterator[Row]:
    for view in jobs:
        for rank, account in view.ledger.ranks.items():
            yield [view.job.job_id, str(rank)], read(account)


def _step_durations(jobs: Iterable[JobView]) -> Metric:
    family = HistogramMetricFamily("lockstep_step_duration_seconds", "Time of a step, on rank 0.", labels=_JOB)
    for view in jobs:
        account = view.ledger.ranks.get(0)
        if account is None:
            continue
        buckets, total = [], 0
        for bound, count in zip((*map(str, STEP_BOUNDS_S), "+Inf"), account.step_counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        family.add_metric([view.job.job_id], buckets, account.step_seconds)
    return family
