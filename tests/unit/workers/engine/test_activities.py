"""What a rank says it is doing is what it is doing."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import Activity, Listener, Trainer, stepper
from lockstep.workers.engine.pace import pace_of
from lockstep.workers.models.linear import LinearRegression

WAIT, GIVEN = "wait for the device", "a shard is given to the device"


class Activities(Listener):
    """Keeps the names of the activities, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def entered(self, activity: Activity, step: int) -> None:
        self.entries.append(activity.value)


class TellingPace:
    """Notes among the activities when the device is waited for."""

    def __init__(self, entries: list[str]) -> None:
        self._entries = entries

    def shard_is_given(self) -> None:
        self._entries.append(GIVEN)

    def wait(self) -> None:
        self._entries.append(WAIT)


def activities(monkeypatch: pytest.MonkeyPatch, validation_size: int) -> list[str]:
    """What is done in one step with its validation, from the first shard to the report."""
    listener = Activities()
    monkeypatch.setattr(stepper, "pace_of", lambda device: TellingPace(listener.entries))
    data = SyntheticRegression((2.0, -3.4), 4.2, 0.01, train_size=100, validation_size=validation_size, seed=0)
    data.load()
    Trainer(max_steps=1, batch_size=8, shards=2, audit="off").fit(
        LinearRegression(2), data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=listener
    )
    return listener.entries[listener.entries.index("compute") : listener.entries.index("report")]


def test_a_rank_waits_for_its_device_before_it_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ["compute", GIVEN, "compute", GIVEN, WAIT, "exchange", WAIT, "update"]
    validation = ["evaluate", WAIT, "evaluate", WAIT, "evaluate", WAIT, "exchange"]
    assert activities(monkeypatch, validation_size=20)[: len(step)] == step
    assert activities(monkeypatch, validation_size=20)[len(step) :] == ["evaluate", WAIT, *validation]


def test_a_rank_without_examples_to_validate_waits_for_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert activities(monkeypatch, validation_size=1)[-3:] == ["evaluate", WAIT, "exchange"]


class PlayedGpu:
    """Streams and events that note what happens to them."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._events = itertools.count(1)

    def current_stream(self, device: torch.device) -> "PlayedGpu":
        return self

    def synchronize(self) -> None:
        self.told.append("wait for the stream")

    def event(self) -> SimpleNamespace:
        number = next(self._events)
        return SimpleNamespace(
            record=lambda stream: self.told.append(f"mark {number}"),
            synchronize=lambda: self.told.append(f"wait for mark {number}"),
        )


def test_the_host_runs_one_shard_ahead_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedGpu()
    monkeypatch.setattr(torch.cuda, "current_stream", played.current_stream)
    monkeypatch.setattr(torch.cuda, "Event", played.event)
    pace = pace_of(torch.device("cuda", 0))
    for _ in range(3):
        pace.shard_is_given()
    pace.wait()
    pace.shard_is_given()
    waits = ["mark 2", "wait for mark 1", "mark 3", "wait for mark 2", "wait for the stream"]
    assert played.told == ["mark 1", *waits, "mark 4"]


def test_on_a_cpu_there_is_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    played = PlayedGpu()
    monkeypatch.setattr(torch.cuda, "current_stream", played.current_stream)
    pace = pace_of(torch.device("cpu"))
    pace.shard_is_given()
    pace.wait()
    assert not played.told
