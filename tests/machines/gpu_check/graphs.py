"""Shards by graphs: the bits of shards that are launched call by call, and how much faster."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from lockstep.workers.engine import Progress
from lockstep.workers.engine.graphs import Recorder as GraphRecorder
from lockstep.workers.engine.graphs import recorder_of
from lockstep.workers.engine.metrics import Point
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge
from tests.machines.gpu_check.work import Recorder, Work, fit
from tests.support.host_recorder import HostRecorder, shards_by


class Counting:
    """Counts what is recorded and replayed by another recorder."""

    def __init__(self, inner: GraphRecorder) -> None:
        self._inner = inner
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = self._inner.record(work)
        self.recorded += 1

        def count() -> None:
            self.replayed += 1
            replay()

        return count

    def drawn_beside(self) -> object:
        return self._inner.drawn_beside()


class Timed(Recorder):
    """Keeps points and notes, and when the last half of the run began and ended."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.times: list[tuple[int, float]] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        super().progressed(progress, points)
        self.times.append((progress.step, time.perf_counter()))

    def noted(self, words: str) -> None:
        self.notes.append(words)

    def steps_per_second(self) -> float:
        """Of the last half."""
        (first, began), (last, ended) = self.times[len(self.times) // 2], self.times[-1]
        return (last - first) / (ended - began)


def check(plan: Plan) -> Iterator[Row]:
    """Each model, as one shard and as four."""
    for model in plan.models:
        for shards in (1, 4):
            name = f"{model}, {shards} shard{'s' if shards > 1 else ''}"
            yield attempt(
                name, partial(of_one_model, name, plan, plan.work(model, shards=shards, steps=3 * plan.steps))
            )


def of_one_model(name: str, plan: Plan, work: Work) -> Row:
    """The same run both ways."""
    counting = Counting(recorder_of(torch.device(plan.device)) or HostRecorder())
    call_by_call, plain = train(work, None)
    by_graphs, fast = train(work, counting)
    rates = {"call by call": plain.steps_per_second(), "by graphs": fast.steps_per_second()}
    is_the_same = (call_by_call, plain.points) == (by_graphs, fast.points)
    seen = "the same bits" if is_the_same else "other bits"
    seen += f", {counting.recorded} graphs; {rates['call by call']:,.0f} and {rates['by graphs']:,.0f} steps/s"
    return judge(
        name,
        is_the_same and counting.replayed > 0 and fast.notes == plain.notes,
        seen if counting.replayed else f"no graphs; {seen}",
        "the same bits by graphs",
        [f"call by call: {call_by_call}", f"by graphs: {by_graphs}", *fast.notes],
        steps_per_second=rates,
        recorded=counting.recorded,
        replayed=counting.replayed,
    )


def train(work: Work, recorder: GraphRecorder | None) -> tuple[str, Timed]:
    """Digest of the weights, and what was told."""
    listener = Timed()
    with shards_by(recorder):
        return fit(work, None, listener).weights_digest, listener
