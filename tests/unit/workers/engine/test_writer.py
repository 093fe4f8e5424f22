"""Checkpoints that are written while training goes on, on a file system that does not answer."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import Listener, Origin, Trainer
from lockstep.workers.engine.state import writer
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.state import TrainState
from lockstep.workers.models.linear import LinearRegression


class Hanging(Checkpoints):
    """Checkpoints on a file system that hangs while it is told to."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri, keep=10)
        self.answers = threading.Event()

    def write(self, state: TrainState) -> None:
        self.answers.wait()
        super().write(state)


class Notes(Listener):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, words: str) -> None:
        self.notes.append(words)


@pytest.fixture
def hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    monkeypatch.setattr(writer, "PATIENCE_S", 0.01)
    monkeypatch.setattr(writer, "LIMIT_S", 0.05)
    hanging = Hanging(str(tmp_path))
    yield hanging
    hanging.answers.set()
    join_writers()


def join_writers() -> None:
    """Return when nothing is being written, however long that takes."""
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def train(checkpoints: Checkpoints, every_steps: int) -> list[str]:
    listener = Notes()
    data = SyntheticRegression((2.0, -3.4), 4.2, 0.01, train_size=100, validation_size=10, seed=0)
    data.load()
    Trainer(max_steps=20, batch_size=8).fit(
        LinearRegression(2),
        data,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        listener=listener,
        origin=Origin(checkpoints, every_steps),
    )
    return listener.notes


def test_training_goes_on_without_checkpoints_while_the_file_system_hangs_and_ends(hanging: Hanging) -> None:
    why = "the one of step 5 is not done yet, and until it is no other is begun"
    assert train(hanging, every_steps=5) == [
        f"the checkpoint of step {step} could not be written: {why}; those before it are kept" for step in (10, 20)
    ]


def test_the_end_of_training_does_not_wait_for_ever_for_its_checkpoint(hanging: Hanging) -> None:
    why = "the file system has not taken it for 0 s"
    assert train(hanging, every_steps=1000) == [
        f"the checkpoint of step 20 could not be written: {why}; those before it are kept"
    ]


def test_when_the_file_system_goes_on_checkpoints_are_written_again(hanging: Hanging) -> None:
    told: list[list[int]] = []
    failed: list[int] = []
    writing = writer.Writer(
        hanging,
        [],
        lambda kept: told.append([checkpoint.step for checkpoint in kept]),
        lambda step, error: failed.append(step),
    )
    copied: list[int] = []

    def begin(step: int) -> bool:
        def copy() -> TrainState:
            copied.append(step)
            return TrainState(step, {"weight": torch.zeros(3)}, {}, {})

        return writing.write(step, copy)

    assert [begin(step) for step in (1, 2, 3)] == [True, False, False]
    assert failed == [2], "told once"
    assert copied == [1], "what is not written is not copied"
    hanging.answers.set()
    join_writers()
    assert begin(4)
    join_writers()  # the writer itself waits for no more than its limit, which is short here
    assert told[-1] == [4, 1]
