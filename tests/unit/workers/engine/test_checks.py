"""What is wrong with a module or with data is told before anything is computed, with its name and the hint."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import DataError, DataModule, Examples, ModelError, Module, Trainer
from tests.support.honest_models import LanguageModel, Numbers, Points, Text, sgd


def fit(module: Any, data: DataModule | None = None) -> None:
    Trainer(max_steps=1, batch_size=10).fit(module, data or Points(), sgd)


class WithoutLoss(Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.layer(inputs)
        return outputs


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


class Precise(Numbers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("phases", torch.ones(2, dtype=torch.complex128), persistent=False)


class Copies(Numbers):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **options).items()}


def hooked(hook: Callable[[dict[str, Any]], Any], module: nn.Module | None = None) -> nn.Module:
    """A module with a hook on its state_dict."""
    module = module or Numbers()
    module.register_state_dict_post_hook(lambda _, state, *rest: hook(state) and None)
    return module


def without_trained(state: dict[str, Any]) -> None:
    state.pop(next(name for name in state if name.endswith("weight")))


def narrowed(state: dict[str, Any]) -> None:
    state |= {name: tensor.bfloat16() for name, tensor in state.items()}


def with_version(state: dict[str, Any]) -> None:
    state["version"] = 2


def with_more(state: dict[str, Any]) -> None:
    state["more"] = torch.ones(3)


def with_bounded_embedding() -> LanguageModel:
    module = LanguageModel()
    module.embedding = nn.Embedding(28, 16, max_norm=1.0)
    return module


@pytest.mark.parametrize(
    ("module", "data", "words"),
    [
        (lambda: nn.Linear(8, 1), Points, "Linear is no lockstep Module; derive it from"),
        (WithoutLoss, Points, r"WithoutLoss has no loss; write loss\(self, outputs, targets\)"),
        (lambda: Numbers(Extra(8, 1)), Points, r"body\.0 \(Extra\) keeps state in get_extra_state.*register_buffer"),
        (Precise, Points, "phases is torch.complex128, which no checkpoint can hold"),
        (Copies, Points, r"body\.0\.weight in state_dict is a copy, or no parameter or buffer.*have state_dict\(\)"),
        (lambda: hooked(narrowed), Points, r"body\.0\.weight in state_dict is a copy"),
        (lambda: hooked(with_version), Points, "state_dict has version, a int; have"),
        (lambda: hooked(with_more), Points, "more in state_dict is a copy, or no parameter or buffer"),
        (lambda: hooked(without_trained), Points, r"body\.0\.weight is trained and is not in state_dict"),
        (with_bounded_embedding, Text, r"embedding \(Embedding\) has max_norm=1\.0, with which forward rewrites"),
    ],
)
def test_a_module_that_cannot_be_trained_is_named(module: Any, data: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fit(module(), data())


def test_a_loss_that_is_set_and_not_written_is_one() -> None:
    module = WithoutLoss()
    module.loss = nn.MSELoss(reduction="none")  # type: ignore[method-assign]
    fit(module)


def test_what_is_not_trained_may_be_left_out_of_state_dict() -> None:
    module = Numbers()
    module.frozen = nn.Linear(2, 2).requires_grad_(False)
    fit(hooked(lambda state: [state.pop(name) for name in list(state) if "frozen" in name], module))


def points(part: str, inputs: int, targets: int) -> Points:
    data = Points()
    setattr(data, part, Examples(torch.randn(inputs, 8), torch.randn(targets, 1)))
    return data


class Unloaded(DataModule):
    field = "data.idx"


class Bare(Points):
    def __init__(self) -> None:
        super().__init__()
        self.train = (self.train.inputs, self.train.targets)  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Unloaded(), r"data\.idx: Unloaded has no train set; set self\.train = Examples\(inputs, targets\)"),
        (Bare(), r"data: Bare\.train is no Examples of two tensors; set self\.train"),
        (points("train", 50, 49), "data: the train set has 50 inputs and 49 targets; give each one target"),
        (points("train", 50, 51), "data: the train set has 50 inputs and 51 targets"),
        (points("validation", 20, 5), "data: the validation set has 20 inputs and 5 targets"),
        (points("validation", 0, 0), "data: the validation set has no examples; allowed: at least one"),
    ],
)
def test_data_that_cannot_be_used_is_named(data: DataModule, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fit(Numbers(), data)


def test_data_without_a_validation_set_is_named() -> None:
    data = Unloaded()
    data.train = Points().train
    with pytest.raises(DataError, match=r"Unloaded has no validation set; set self\.validation"):
        fit(Numbers(), data)


class FailsInValidation(Numbers):
    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training and len(inputs) > 3:
            raise ValueError("this shows in validation")
        return super().forward(inputs)


def test_what_goes_wrong_in_validation_is_seen_before_the_first_step() -> None:
    module = FailsInValidation()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with pytest.raises(ValueError, match="this shows in validation"):
        Trainer(max_epochs=3, batch_size=10).fit(module, Points(), sgd)
    assert all(torch.equal(one, other) for one, other in zip(before, module.parameters(), strict=True))
