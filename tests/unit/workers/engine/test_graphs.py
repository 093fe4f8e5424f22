"""Shards by graphs: the bits of shards that are computed call by call, and call by call where there are no graphs."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import DataModule, Listener, Module, Point, Progress, Trainer, graphs
from tests.support.honest_models import HONEST, Net, Numbers, Points, Shifting, sgd
from tests.support.host_recorder import HostRecorder, shards_by

REFUSED = {
    "quantisation": "it cannot be recorded: RuntimeError: operation not permitted when stream is capturing",
    "augmentation": "it draws from a generator of the host",
}
"""Models that cannot be recorded, and why."""


class Kept(Listener):
    """Keeps points, and what is noted."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.notes: list[str] = []

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        self.points += [point for point in points if not point.is_timing]

    def noted(self, words: str) -> None:
        self.notes.append(words)


def train(
    module: Callable[[], Module],
    data: Callable[[], DataModule],
    recorder: graphs.Recorder | None,
    **options: Any,
) -> tuple[str, list[Point], list[str]]:
    """Digest of the weights, points and notes of a training with graphs, or without for None."""
    kept = Kept()
    settings: dict[str, Any] = {"max_steps": 24, "batch_size": 20, "shards": 3, "log_every_steps": 5, "audit": "off"}
    torch.manual_seed(0)
    with shards_by(recorder):
        result = Trainer(**settings | options).fit(module(), data(), sgd, listener=kept)
    return result.weights_digest, kept.points, kept.notes


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", HONEST)
def test_a_model_has_the_same_curve_with_graphs_and_without(name: str) -> None:
    recorder = HostRecorder()
    by_graphs, call_by_call = train(*HONEST[name], recorder), train(*HONEST[name], None)
    assert by_graphs[:2] == call_by_call[:2]
    if name in REFUSED:
        assert [REFUSED[name] in words for words in by_graphs[2]] == [True], "told once"
    else:
        assert by_graphs[2] == call_by_call[2]
        assert recorder.recorded == 4, "two sizes in a minibatch, two in the last one of an epoch"
        assert recorder.replayed > 40


def test_the_audit_and_graphs_leave_each_other_alone() -> None:
    name = "convolutions and batch normalisation"
    recorder = HostRecorder()
    plain = train(*HONEST[name], None)
    assert train(*HONEST[name], recorder, audit="always") == plain
    assert recorder.replayed > 40


class Half(Net):
    """Parameters of 16 bits, whose sums of losses need more."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))
        self.bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = super().forward(inputs.bfloat16())
        return outputs


def test_parameters_of_16_bits_have_the_same_curve_with_graphs_and_without() -> None:
    images, recorder = HONEST["convolutions and batch normalisation"][1], HostRecorder()
    assert train(Half, images, recorder) == train(Half, images, None)
    assert recorder.replayed > 40


class Looking(Shifting):
    """Looks at a value, when a buffer has been assigned anew."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        return outputs if float(self.mean.sum()) < 1e9 else 2 * outputs


def test_what_a_model_did_before_it_could_not_be_recorded_is_undone() -> None:
    digest, points, notes = train(Looking, Points, HostRecorder())
    assert (digest, points) == train(Looking, Points, None)[:2]
    assert [REFUSED["quantisation"] in words for words in notes] == [True]


class Broken(HostRecorder):
    """Does something wrong.

    Args:
        failure: what recording raises; None: what is replayed has other bits.
    """

    def __init__(self, failure: Exception | None) -> None:
        super().__init__()
        self._failure = failure

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(work)
        if self._failure is not None:
            raise self._failure

        def replay_twice() -> None:
            replay()
            work()

        return replay_twice


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), r"OutOfMemoryError: CUDA out of memory\. Tried$"),
        (None, "its bits were others$"),
    ],
)
def test_where_graphs_do_not_work_training_goes_on_call_by_call_and_tells_why(
    failure: Exception | None, why: str
) -> None:
    digest, points, notes = train(Numbers, Points, Broken(failure))
    assert (digest, points) == train(Numbers, Points, None)[:2]
    (words,) = notes
    assert words.startswith("shards are computed call by call")
    assert re.search(why, words), words
