"""The engine's gradient beside that of plain autograd in float64 on the CPU."""

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lockstep.workers.engine import DataModule, Examples, Module, Trainer
from tests.machines.gpu_check.plan import Plan
from tests.machines.gpu_check.report import Row, attempt, judge
from tests.machines.gpu_check.work import SEED, data_of, examples_of, module_of

EXAMPLES = 128
LARGEST_ERROR = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 1e-1}
"""Allowed norm of the difference, by the norm of the gradient. TF32 in float32's place would give more: it rounds to
5e-4. In bfloat16 another pixel may be the largest one of a window."""
WORST_SHOWN = 6


class Converted(DataModule):
    """A few examples, in another type."""

    def __init__(self, examples: Examples, classes: int | None, dtype: torch.dtype) -> None:
        targets = examples.targets if classes is not None else examples.targets.to(dtype)
        self.train = self.validation = Examples(examples.inputs.to(dtype), targets)
        self.num_classes = classes


class Keep(torch.optim.Optimizer):
    """An optimizer that keeps the gradient and changes nothing."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self.gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [parameter.grad for parameter in self.param_groups[0]["params"]]
        self.gradients = [gradient.detach().to("cpu", torch.float64, copy=True) for gradient in gradients]


def check(plan: Plan) -> Iterator[Row]:
    """Each model in the types that it can have."""
    for model in plan.models:
        for dtype in LARGEST_ERROR:
            name = f"gradient, {model}, {str(dtype).removeprefix('torch.')}"
            yield attempt(name, partial(of_one, name, plan, model, dtype))


def of_one(name: str, plan: Plan, model: str, dtype: torch.dtype) -> Row:
    """One model in one type."""
    work = plan.work(model)
    data = data_of(work)
    examples = examples_of(work, EXAMPLES)
    module = without_dropout(module_of(work, data))
    # A shard has statistics of its own, which are those of the minibatch when there is one.
    shards = 1 if any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()) else 4
    wanted = reference(module, Converted(examples, data.num_classes, torch.float64))
    seen = of_the_engine(module, Converted(examples, data.num_classes, dtype), dtype, plan.device, shards)
    return compare(name, seen, wanted, LARGEST_ERROR[dtype])


def without_dropout(module: Module) -> Module:
    """The module, drawing nothing at random."""
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, nn.LSTM | nn.MultiheadAttention):
            layer.dropout = 0.0
    return module


def reference(module: Module, data: DataModule) -> dict[str, Tensor]:
    """Gradients of the mean loss by parameter, in float64 on the CPU."""
    module = copy.deepcopy(module).cpu().double().train()
    losses = module.loss(module(data.train.inputs), data.train.targets)
    (losses.sum() / losses.numel()).backward()
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}


def of_the_engine(module: Module, data: DataModule, dtype: torch.dtype, device: str, shards: int) -> dict[str, Tensor]:
    """The engine's, after one step over all examples."""
    module = copy.deepcopy(module).to(dtype)
    kept: list[Keep] = []

    def optimizer(parameters: list[nn.Parameter]) -> Keep:
        kept.append(Keep(parameters))
        return kept[0]

    trainer = Trainer(max_steps=1, batch_size=EXAMPLES, shards=shards, seed=SEED)
    trainer.fit(module, data, optimizer, device=device)
    names = [name for name, value in module.named_parameters() if value.requires_grad]
    return dict(zip(names, kept[0].gradients, strict=True))


def compare(check: str, seen: dict[str, Tensor], wanted: dict[str, Tensor], largest: float) -> Row:
    """A row about the norm of the difference; the parameters that differ most are told."""
    errors = {name: float((seen[name] - wanted[name]).norm()) for name in wanted}
    norm = math.sqrt(sum(float(gradient.norm()) ** 2 for gradient in wanted.values()))
    error = math.sqrt(sum(value**2 for value in errors.values())) / norm
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST_SHOWN]
    details = [f"{name}: {errors[name]:.2e} of {float(wanted[name].norm()):.2e}" for name in worst]
    return judge(check, error <= largest, f"error {error:.1e}", f"at most {largest:.0e}", details, error=error)
