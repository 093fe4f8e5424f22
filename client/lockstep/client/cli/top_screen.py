"""What `top` shows, drawn from one look at the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lockstep.client.cli import output
from lockstep.client.cluster import Cluster, Node, Worker, WorkerState
from lockstep.client.job import Job
from lockstep.client.ledger import Ledger
from lockstep.client.telemetry import GpuTelemetry
from lockstep.client.types import JobState
from lockstep.contract.wording import count, part_of

BAR_CELLS = 10
TIME_CELLS = 20
LEAST_BUSY_RATIO = 0.05
"""A GPU that a job holds and that is busy for less is called idle."""

# Letter, colour and phases of each part of the bar of time; the letter tells it where there are no colours.
_PARTS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("c", "green", "compute", ("forward", "backward", "optimizer")),
    ("d", "yellow", "data", ("data", "host_to_device")),
    ("x", "magenta", "exchange", ("exchange",)),
    ("w", "red", "exchange_wait", ("exchange_wait",)),
    ("v", "blue", "validation", ("validation",)),
    ("k", "cyan", "checkpoint", ("checkpoint",)),
    ("h", "bright_red", "healing", ("healing",)),
    ("s", "white", "start_up", ("start_up",)),
    ("i", "bright_black", "idle", ("idle",)),
)
_STEP_PHASES = ("data", "host_to_device", "forward", "backward", "exchange", "exchange_wait", "optimizer")


@dataclass(frozen=True)
class JobView:
    """A job, and its newest ledger with the one before it, if there are."""

    job: Job
    ledgers: tuple[Ledger, ...] = ()

    def lately(self) -> Mapping[str, float]:
        """Seconds of all ranks by phase between the two ledgers, or since the start."""
        if not self.ledgers:
            return {}
        newest = self.ledgers[-1].seconds
        before = self.ledgers[0].seconds if len(self.ledgers) > 1 else dict.fromkeys(newest, 0.0)
        return {phase: max(0.0, newest[phase] - before[phase]) for phase in newest}

    def use_of(self, rank: int | None, cpus: float) -> tuple[float | None, str]:
        """How busy a rank keeps its CPUs, 0 to 1, and its memory; None and "" while they are not known."""
        told = [next((known for known in ledger.ranks if known.rank == rank), None) for ledger in self.ledgers]
        if not told or told[-1] is None:
            return None, ""
        busy, seconds = told[-1].cpu_seconds, sum(told[-1].seconds.values())
        if len(told) > 1 and told[0] is not None:
            busy -= told[0].cpu_seconds
            seconds -= sum(told[0].seconds.values())
        return (busy / seconds / cpus if seconds > 0 and cpus else None), f"{told[-1].memory_bytes / 2**30:.1f} GiB"

    def samples_per_second(self) -> float | None:
        """Examples of the global minibatches per second of its steps; None while that is not known."""
        told = [next((rank for rank in ledger.ranks if rank.rank == 0), None) for ledger in self.ledgers]
        if not told or told[-1] is None:
            return None
        steps, seconds = told[-1].steps, sum(told[-1].seconds[phase] for phase in _STEP_PHASES)
        if len(told) > 1 and told[0] is not None and steps > told[0].steps:
            steps -= told[0].steps
            seconds -= sum(told[0].seconds[phase] for phase in _STEP_PHASES)
        return steps * self.job.spec.training.batch_size / seconds if seconds > 0 and steps else None


@dataclass(frozen=True)
class View:
    """One look at a server.

    Attributes:
        target: address of the server.
        problem: why this is an old look; empty when it is not.
        time: when it was taken.
    """

    target: str
    cluster: Cluster
    nodes: tuple[Node, ...]
    jobs: tuple[JobView, ...]
    problem: str = ""
    time: datetime | None = None

    def __post_init__(self) -> None:
        if self.time is None:
            object.__setattr__(self, "time", datetime.now(UTC))

    def stale(self, problem: str) -> View:
        """The same, since no newer one could be had."""
        return replace(self, problem=problem)


class Flowing:
    """Pieces one after the other, on as many lines as they need; none is broken.

    Args:
        pieces: what to show, with two blanks between them.
    """

    def __init__(self, *pieces: Text) -> None:
        self._pieces = pieces

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        line = Text()
        for piece in self._pieces:
            if line and len(line) + 2 + len(piece) > options.max_width:
                yield line
                line = Text()
            line = Text("  ").join([line, piece]) if line else piece.copy()
        yield line


@dataclass(frozen=True)
class Drawing:
    """A table with lines below it."""

    table: Table
    notes: tuple[Text | Flowing, ...] = ()


class Fitted:
    """The first of some drawings whose table is narrow enough; the last one if none is.

    Args:
        drawings: of the same, the widest first: what matters least is gone first.
    """

    def __init__(self, *drawings: Drawing) -> None:
        self._drawings = drawings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (drawing for drawing in self._drawings if _width(console, options, drawing) <= options.max_width)
        drawing = next(fitting, self._drawings[-1])
        yield Group(drawing.table, *drawing.notes)


def _width(console: Console, options: ConsoleOptions, drawing: Drawing) -> int:
    return Measurement.get(console, options.update(max_width=10_000), drawing.table).maximum


def screen(view: View) -> Group:
    """Everything on the screen. On a narrow one bars go first; ids and names stay whole."""
    parts: list[Text | Flowing | Fitted] = [_head(view)]
    if view.problem:
        parts.append(Text(f"shown as of {output.clock(view.time)}: {view.problem}", style="red"))
    if not view.cluster.is_ready:
        parts.append(Text(f"not ready: {view.cluster.not_ready_reason}", style="yellow"))
    parts += [Text(), Fitted(_nodes(view, 0), _nodes(view, 1), _nodes(view, 2)), Text()]
    if view.jobs:
        parts.append(Fitted(_jobs(view.jobs, 0), _jobs(view.jobs, 1), _jobs(view.jobs, 2)))
    else:
        parts.append(Text("no jobs run or wait"))
    return Group(*parts)


def _head(view: View) -> Flowing:
    cluster = view.cluster
    facts = [count(cluster.nodes, "node")]
    for kind, name in (("gpus", "GPU"), ("cpus", "CPU")):
        usable, held = getattr(cluster.usable, kind), getattr(cluster.held_by_jobs, kind)
        if usable:
            facts.append(f"{part_of(held, usable, name)} held by jobs")
    facts.append(f"{count(cluster.jobs_running, 'job')} running")
    facts.append(f"{cluster.jobs_waiting} waiting")
    where = f"{view.target}  {output.clock(view.time)}"
    return Flowing(Text.assemble(("Lockstep", "bold"), f"  {where}"), Text(", ".join(facts)))


def _nodes(view: View, narrowness: int) -> Drawing:
    """The nodes: 0 with all there is; 1 devices below their node, no bars; 2 also without power and temperature."""
    table = output.make_table()
    table.add_column("node", no_wrap=True)
    if not narrowness:
        table.add_column("", no_wrap=True)
    table.add_column("busy", no_wrap=True)
    table.add_column("memory", justify="right", no_wrap=True)
    if narrowness < 2:
        table.add_column("", no_wrap=True)
    table.add_column("works for", overflow="fold")
    share = _percent if narrowness else _bar

    def add(name: str, device: str, busy: float | None, memory: str, state: str, user: Text) -> None:
        first = [name, device] if not narrowness else [name or f"  {device}"]
        table.add_row(*first, share(busy), memory, *([state] if narrowness < 2 else []), user)

    for node in sorted(view.nodes, key=lambda node: (node.name, node.node_id)):
        host = node.telemetry.host if node.telemetry is not None else None
        busy = host.cpu_utilization_ratio if host is not None else None
        memory = _share(host.memory_used_bytes, host.memory_total_bytes) if host is not None else ""
        add(node.name or node.node_id, _cpus(node), busy, memory, "", _described(node))
        rows = _gpus(node) if node.telemetry is not None and node.telemetry.gpus else _workers(node, view.jobs)
        for row in rows:
            add("", *row)
    return Drawing(table)


def _cpus(node: Node) -> str:
    return count(node.total.cpus, "CPU")


def _described(node: Node) -> Text:
    warm = sum(worker.state is WorkerState.WARM for worker in node.workers)
    facts = [f"{part_of(node.held_by_jobs.cpus, node.usable.cpus, 'CPU')} held"]
    if node.usable.gpus:
        facts.append(f"{part_of(node.held_by_jobs.gpus, node.usable.gpus, 'GPU')} held")
    facts += [f"{warm} warm"] if warm else []
    facts += ["no telemetry"] if node.telemetry is None else []
    return Text(", ".join(facts), style="bright_black")


_Row = tuple[str, float | None, str, str, Text]


def _gpus(node: Node) -> Iterator[_Row]:
    assert node.telemetry is not None
    for gpu in node.telemetry.gpus:
        users = [worker for worker in node.workers if worker.job_id and gpu.index in worker.gpu_indexes]
        busy = gpu.utilization_ratio if gpu.sm_active_ratio is None else gpu.sm_active_ratio
        name = f"GPU {gpu.index} {gpu.name}".removesuffix(" ")
        yield name, busy, _share(gpu.memory_used_bytes, gpu.memory_total_bytes), _state(gpu), _user(users, busy)


def _workers(node: Node, jobs: Iterable[JobView]) -> Iterator[_Row]:
    """CPU workers stand where GPUs would."""
    views = {view.job.job_id: view for view in jobs}
    for worker in node.workers:
        if worker.job_id:
            cpus = count(worker.resources.cpus, "CPU")
            view = views.get(worker.job_id)
            busy, memory = view.use_of(worker.rank, worker.resources.cpus) if view is not None else (None, "")
            yield f"worker, {cpus}", busy, memory, "", _user([worker], None)


def _state(gpu: GpuTelemetry) -> str:
    facts = []
    if gpu.power_watts is not None:
        facts.append(f"{gpu.power_watts:.0f} W")
    if gpu.temperature_celsius is not None:
        facts.append(f"{gpu.temperature_celsius:.0f} °C")
    return " ".join(facts)


def _user(workers: list[Worker], busy: float | None) -> Text:
    if not workers:
        return Text("nobody", style="bright_black")
    text = Text(", ".join(_worker_name(worker) for worker in workers))
    if busy is not None and busy < LEAST_BUSY_RATIO:
        text.append("  held but idle", style="red")
    return text


def _worker_name(worker: Worker) -> str:
    who = f"worker {worker.number}" if worker.rank is None else f"rank {worker.rank}"
    state = " (starting)" if worker.state is WorkerState.STARTING else ""
    return f"{worker.job_id} {who}{state}"


def _jobs(jobs: Iterable[JobView], narrowness: int) -> Drawing:
    """The jobs: 0 with all there is; 1 without the bar of time, remarks below; 2 also without bars of progress."""
    table = output.make_table()
    for name in ("job", "name", "state", "workers"):
        table.add_column(
            name, justify="left" if name != "workers" else "right", no_wrap=name != "name", overflow="fold"
        )
    table.add_column("progress", no_wrap=True)
    table.add_column("samples/s", justify="right", no_wrap=True)
    if not narrowness:
        table.add_column("time", no_wrap=True)
        table.add_column("", no_wrap=True)
    remarks = []
    for view in jobs:
        job, remark = view.job, _remark(view)
        speed = view.samples_per_second() if job.state is JobState.RUNNING else None
        table.add_row(
            job.job_id,
            job.name,
            output.state_text(job.state),
            output.workers_text(job),
            _progress(job, _percent if narrowness > 1 else _bar),
            f"{speed:,.0f}" if speed is not None else "",
            *([] if narrowness else [_time(view.lately()), remark]),
        )
        if narrowness and remark:
            remarks.append(Text(f"{job.job_id}: ").append_text(remark))
    return Drawing(table, tuple([Text(), *remarks] if remarks else []) if narrowness else (Text(), _legend()))


def _progress(job: Job, share: Callable[[float | None], Text]) -> Text:
    progress = job.progress
    return share(progress.step / progress.total_steps if progress.total_steps else None)


def _remark(view: JobView) -> Text:
    if view.job.state is JobState.QUEUED:
        return Text(view.job.state_reason, style="bright_black")
    straggler = view.ledgers[-1].straggler if view.ledgers else None
    return Text(f"rank {straggler} is the straggler", style="red") if straggler is not None else Text()


def _bar(share: float | None) -> Text:
    if share is None:
        return Text()
    share = min(1.0, max(0.0, share))
    full = round(share * BAR_CELLS)
    text = Text("█" * full, style="green")
    text.append("·" * (BAR_CELLS - full), style="bright_black")
    text.append(f" {share:4.0%}", style="default")
    return text


def _percent(share: float | None) -> Text:
    return Text() if share is None else Text(f"{min(1.0, max(0.0, share)):4.0%}")


def _time(seconds: Mapping[str, float]) -> Text:
    """A bar in which each part has as many cells as its share; every cell is a letter, for want of colours."""
    total = sum(seconds.values())
    text = Text()
    if total <= 0:
        return text
    reached, drawn = 0.0, 0
    for letter, colour, _, phases in _PARTS:
        reached += sum(seconds[phase] for phase in phases) / total
        cells = round(reached * TIME_CELLS) - drawn
        text.append(letter * cells, style=f"black on {colour}")
        drawn += cells
    return text


def _legend() -> Flowing:
    pieces = [
        Text.assemble((letter, f"black on {colour}"), (f" {name}", "bright_black"))
        for letter, colour, name, _ in _PARTS
    ]
    return Flowing(Text("time:", style="bright_black"), *pieces)


def _share(used: int | None, total: int | None) -> str:
    if used is None or not total:
        return ""
    return f"{used / 2**30:.1f}/{total / 2**30:.0f} GiB"
