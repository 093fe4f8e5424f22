"""What optimizers keep goes on bit for bit, from checkpoints and on workers that join; what cannot is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Examples, Group, ModelError, Origin, Regressor, Trainer
from lockstep.workers.engine.state.checkpoint import Checkpoints
from tests.distributed.test_buffers import BATCH_SIZE, SEED, Points
from tests.distributed.test_one_curve import Recorder

STEPS = 16


class Own(torch.optim.Optimizer):
    """One that people write; `keep` gives the factor by which a gradient is applied."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, {"lr": 0.05} | options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                change = group["lr"] * self.change(group, self.state[parameter], parameter)
                parameter.sub_(change.to(parameter.dtype))

    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        raise NotImplementedError


class Wide(Own):
    """Keeps a mean of more bits than its parameters, which are rounded to what they were cast to."""

    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        if not state:
            state["mean"] = torch.zeros_like(parameter, dtype=torch.float64)
        state["mean"].mul_(0.9).add_(parameter.grad.double(), alpha=0.1)
        return state["mean"]


class Signs(Own):
    """Keeps truth values, whole numbers, a word, and nothing; asks for what they are."""

    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        if not state:
            state["was_up"] = torch.zeros_like(parameter, dtype=torch.bool)
            state["turns"] = torch.zeros_like(parameter, dtype=torch.int64)
            state |= {"word": "slow", "none": None, "calls": 0}
        is_up = parameter.grad > 0
        state["turns"] += is_up ^ state["was_up"]
        state["was_up"] = is_up
        state["calls"] += 1
        assert (state["word"], state["none"]) == ("slow", None)
        return parameter.grad / (1 + (state["turns"] // 2) + state["calls"] % 3)


class Counting(Own):
    """Counts in a tensor of its parameter group."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, count=torch.zeros((), dtype=torch.float64))

    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        group["count"] += 1
        return parameter.grad / group["count"]


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "wide": Wide,
    "signs": Signs,
    "counting": Counting,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "nadam": lambda parameters: torch.optim.NAdam(parameters, lr=0.01),
    "asgd": lambda parameters: torch.optim.ASGD(parameters, lr=0.1, t0=2),
    "rprop": lambda parameters: torch.optim.Rprop(parameters, lr=0.01),
}


class Net(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.body(inputs)
        return outputs


def points(dtype: torch.dtype) -> Points:
    data = Points()
    data.train, data.validation = (
        Examples(part.inputs.to(dtype), part.targets.to(dtype)) for part in (data.train, data.validation)
    )
    return data


def fit(
    group: Group,
    optimizer: Any,
    dtype: torch.dtype = torch.float32,
    max_steps: int = STEPS,
    folder: Path | None = None,
    module: type[Regressor] = Net,
) -> tuple[str, list[Any]]:
    torch.manual_seed(1)
    recorder = Recorder()
    trainer = Trainer(max_steps=max_steps, batch_size=BATCH_SIZE, shards=6, seed=SEED, log_every_steps=1)
    result = trainer.fit(
        module().to(dtype),
        points(dtype),
        OPTIMIZERS.get(optimizer, optimizer),
        group=group,
        listener=recorder,
        origin=Origin(Checkpoints(str(folder)), every_steps=3) if folder else None,
    )
    return result.weights_digest, recorder.points


def assert_goes_on(ranks: Any, folder: Path, *case: Any) -> None:
    digest, metrics = ranks.run(1, fit, *case)[0]
    for world_size, then in ((1, 2), (2, 3), (3, 1)):
        checkpoints = folder / str(world_size)
        ranks.run(world_size, fit, *case, 9, checkpoints)
        for other_digest, other_metrics in ranks.run(then, fit, *case, STEPS, checkpoints):
            assert other_metrics == [point for point in metrics if point.step > 9]
            assert other_digest == digest


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_optimizer_keeps_goes_on_from_a_checkpoint(
    ranks: Any, tmp_path: Path, optimizer: str, dtype: torch.dtype
) -> None:
    assert_goes_on(ranks, tmp_path, optimizer, dtype)


class Hidden(torch.optim.SGD):
    """Has a schedule of its own that begins late."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.05)
        self.calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        if self.calls == 5:
            self.param_groups[0]["lr"] *= 0.5
        super().step()


class Momenta(Own):
    """Changes a list of its options in place."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, betas=[0.9, 0.99])

    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        group["betas"][0] *= 0.99
        return parameter.grad


class Stray(Own):
    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        self.state["calls"] = self.state.get("calls", 0) + 1  # type: ignore[call-overload, index]
        return parameter.grad


class History(Own):
    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        state["history"] = [parameter.grad.clone()]
        return parameter.grad


class GroupHistory(Own):
    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        group.setdefault("history", []).append(float(parameter.grad.sum()))
        return parameter.grad


class Phases(Own):
    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        state["phase"] = parameter.grad.to(torch.complex128)
        return parameter.grad


class KeepsGradient(Own):
    def change(self, group: dict[str, Any], state: dict[str, Any], parameter: Any) -> Any:
        before = state.get("before")
        state["before"] = parameter.grad
        return parameter.grad if before is None else parameter.grad - 0.1 * before


UNFIT = [
    (Momenta, r"the optimizer's betas changed"),
    (Stray, r"Stray keeps a state of 'calls', which no checkpoint can hold; keep tensors and numbers"),
    (History, r"History keeps history, a list, in the state of a parameter, which no checkpoint can hold"),
    (GroupHistory, r"GroupHistory keeps list history in a parameter group, which no checkpoint can hold"),
    (Phases, r"Phases keeps phase, a torch.strided tensor of torch.complex128, which no checkpoint can hold"),
    (KeepsGradient, r"KeepsGradient keeps a parameter or a gradient itself, and not its values, as before; keep a"),
]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("optimizer", "words"), UNFIT)
def test_what_no_checkpoint_can_hold_is_named_on_every_worker(
    ranks: Any, world_size: int, optimizer: Any, words: str
) -> None:
    outcomes = ranks.outcomes(world_size, fit, optimizer)
    assert all(f"{ModelError.__name__}: {words}" in failure for _, failure in outcomes), outcomes


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_schedule_is_seen_also_after_a_state_was_taken_over(ranks: Any, tmp_path: Path, world_size: int) -> None:
    ranks.run(world_size, fit, Hidden, torch.float32, 4, tmp_path)
    for _, failure in ranks.outcomes(world_size, fit, Hidden, torch.float32, STEPS, tmp_path):
        assert failure is not None, "trained on with another rate"
        assert "the optimizer's lr changed from 0.05 to 0.025" in failure
