"""What a rank says it is doing is what it is doing."""

import pytest
import torch

from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import Activity, Listener, Trainer, stepper
from lockstep.workers.models.linear import LinearRegression

WAIT = "wait for the device"


class Activities(Listener):
    """Keeps the names of the activities, in order."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def entered(self, activity: Activity, step: int) -> None:
        self.entries.append(activity.value)


def activities(monkeypatch: pytest.MonkeyPatch, validation_size: int) -> list[str]:
    """What is done in one step with its validation, from the first shard to the report."""
    listener = Activities()
    monkeypatch.setattr(stepper, "wait_for_device", lambda device: listener.entries.append(WAIT))
    data = SyntheticRegression((2.0, -3.4), 4.2, 0.01, train_size=100, validation_size=validation_size, seed=0)
    data.load()
    Trainer(max_steps=1, batch_size=8, shards=2, audit="off").fit(
        LinearRegression(2), data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), listener=listener
    )
    return listener.entries[listener.entries.index("compute") : listener.entries.index("report")]


def test_a_rank_waits_for_its_device_before_it_waits_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step = ["compute", WAIT, "compute", WAIT, "exchange", WAIT, "update"]
    validation = ["evaluate", WAIT, "evaluate", WAIT, "evaluate", WAIT, "exchange"]
    assert activities(monkeypatch, validation_size=20)[: len(step)] == step
    assert activities(monkeypatch, validation_size=20)[len(step) :] == ["evaluate", WAIT, *validation]


def test_a_rank_without_examples_to_validate_waits_for_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert activities(monkeypatch, validation_size=1)[-3:] == ["evaluate", WAIT, "exchange"]


def test_the_device_is_waited_for_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for: list[torch.device] = []

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def synchronize(self) -> None:
            waited_for.append(self.device)

    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        stepper.wait_for_device(device)
    assert waited_for == [torch.device("cuda", 0)]
