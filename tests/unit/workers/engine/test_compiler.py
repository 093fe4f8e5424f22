"""What of the compiler is fixed, and that who compiles nothing does not wait for its import."""

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lockstep.workers.engine import Ledger, Trainer
from lockstep.workers.engine.compiler import COMPILED_SHAPES, fix_compiler, spare_import, step
from lockstep.workers.engine.update import ELEMENTWISE
from tests.support.honest_models import Numbers, Points, sgd
from tests.support.processes import in_a_fresh_process


def test_a_compiled_function_is_compiled_for_each_shape_by_itself() -> None:
    fix_compiler()
    shapes: list[tuple[Any, ...]] = []

    def note(graph: Any, inputs: list[Any]) -> Any:
        shapes.extend(tuple(value.shape) for value in inputs if isinstance(value, Tensor))
        return graph.forward

    double = torch.compile(lambda inputs: inputs * 2, backend=note)
    for size in (12, 13, 14, 12, 13):
        double(torch.ones(size, 8))
    assert shapes == [(12, 8), (13, 8), (14, 8)]
    assert all(type(length) is int for shape in shapes for length in shape)


def test_a_function_that_is_compiled_for_too_many_shapes_fails_instead_of_going_on_uncompiled() -> None:
    fix_compiler()
    double = torch.compile(lambda inputs: inputs * 2, backend="eager")
    with pytest.raises(Exception, match="recompile_limit"):
        for size in range(2, COMPILED_SHAPES + 4):
            double(torch.ones(size))


def test_a_function_that_is_compiled_is_run_compiled_in_every_step() -> None:
    runs: list[int] = []
    was_compiled: list[bool] = []

    def counted(graph: Any, inputs: list[Any]) -> Any:
        def run(*args: Any) -> Any:
            runs.append(len(args))
            return graph.forward(*args)

        return run

    activation = torch.compile(lambda inputs: inputs.sigmoid() * inputs.std(), backend=counted)

    class Compiled(Numbers):
        def forward(self, inputs: Tensor) -> Tensor:
            before = len(runs)
            outputs = super().forward(activation(inputs))
            if self is module and self.training:  # and not while its operations are counted
                was_compiled.append(len(runs) > before)
            return outputs

    module, ledger = Compiled(), Ledger()
    Trainer(max_steps=3, batch_size=20, shards=2, audit="off").fit(module, Points(), sgd, ledger=ledger)
    assert was_compiled == [True] * 6
    assert ledger.flops_per_step > 0


class Noisy(Numbers):
    """A model with the layers that are most of what people train."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(8), nn.Flatten())

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(self.more(inputs))


class Checkpointed(Numbers):
    """A model whose activations are computed again in the backward pass."""

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = checkpoint(super().forward, inputs.requires_grad_(), use_reentrant=True)
        return outputs


def make(kind: Any, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer with its defaults."""
    return kind(parameters)


def imports_of_a_training(kinds: tuple[type[torch.optim.Optimizer], ...]) -> tuple[bool, dict[str, Any]]:
    """Whether training has imported the compiler, and how it is set up once somebody imports it."""
    for kind in kinds:
        ledger = Ledger()
        Trainer(max_steps=3, batch_size=20, shards=2).fit(Noisy(), Points(), partial(make, kind), ledger=ledger)
        assert ledger.flops_per_step > 0
    Trainer(max_steps=3, batch_size=20).fit(Checkpointed(), Points(), partial(make, torch.optim.SGD))
    was_imported = "torch._dynamo" in sys.modules
    from torch._dynamo import config
    from torch._inductor import config as inductor_config

    names = ("automatic_dynamic_shapes", "recompile_limit", "fail_on_recompile_limit_hit")
    return was_imported, {"deterministic": inductor_config.deterministic} | {
        name: getattr(config, name) for name in names
    }


def test_who_compiles_nothing_does_not_import_the_compiler_and_who_does_so_later_finds_it_set_up() -> None:
    was_imported, settings = in_a_fresh_process(imports_of_a_training, ELEMENTWISE)
    assert not was_imported
    assert settings == {
        "automatic_dynamic_shapes": False,
        "recompile_limit": COMPILED_SHAPES,
        "fail_on_recompile_limit_hit": True,
        "deterministic": True,
    }


def bits_of_steps(kind: type[torch.optim.Optimizer], is_plain: bool) -> list[float]:
    """Parameters after some steps, by `step` or as torch has it."""
    if is_plain:
        spare_import()
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(100))
    optimizer = make(kind, [parameter])
    for _ in range(5):
        parameter.grad = torch.randn(100)
        if is_plain:
            step(optimizer)
        else:
            optimizer.step()
    assert ("torch._dynamo" in sys.modules) is not is_plain
    return parameter.tolist()


@pytest.mark.parametrize("kind", ELEMENTWISE)
def test_a_step_without_the_compiler_has_the_bits_of_one_with_it(kind: type[torch.optim.Optimizer]) -> None:
    assert in_a_fresh_process(bits_of_steps, kind, True) == bits_of_steps(kind, False)


def hooks_that_are_run() -> list[str]:
    """Which of the ways to look at a step see it."""
    seen: list[str] = []
    values = [nn.Parameter(torch.zeros(1))]
    optimizers = [torch.optim.SGD(values) for _ in range(3)]
    optimizers[0].register_step_pre_hook(lambda *_: seen.append("before"))
    optimizers[1].register_step_post_hook(lambda *_: seen.append("after"))
    optimizers[2].__dict__["step"] = lambda: seen.append("replaced")
    for optimizer in optimizers:
        step(optimizer)
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: seen.append("after any"))
    step(torch.optim.SGD(values))
    return seen


def test_who_waits_for_a_step_is_told_of_it() -> None:
    assert in_a_fresh_process(hooks_that_are_run) == ["before", "after", "replaced", "after any"]
