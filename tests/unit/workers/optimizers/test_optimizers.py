"""An optimizer of a spec is torch's own, with the numbers of the spec."""

import torch
from torch import nn

from lockstep.server.spec.validation import resolve
from lockstep.v1.job_spec_pb2 import AdamwOptimizer, OptimizerSpec
from lockstep.workers.optimizers import build_optimizer
from tests.support.specs import DIGITS, SITE, spec_of

OF_THE_BUILDER = {"foreach"}
"""Options that change how fast the same numbers come."""


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]


def test_adamw_has_the_defaults_of_pytorch() -> None:
    spec = resolve(spec_of(DIGITS | {"optimizer": {"adamw": {}}}), SITE)
    optimizer = build_optimizer(spec.optimizer, parameters())
    theirs = torch.optim.AdamW(parameters())
    assert type(optimizer) is torch.optim.AdamW
    assert {name: value for name, value in optimizer.defaults.items() if name not in OF_THE_BUILDER} == {
        name: value for name, value in theirs.defaults.items() if name not in OF_THE_BUILDER
    }


def test_adamw_steps_as_its_formula_says() -> None:
    spec = AdamwOptimizer(learning_rate=0.1, beta1=0.8, beta2=0.9, epsilon=1e-6, weight_decay=0.5)
    (weights,) = parameters()
    optimizer = build_optimizer(OptimizerSpec(adamw=spec), [weights])
    expected, mean, square = weights.detach().double(), torch.zeros(3).double(), torch.zeros(3).double()
    for step in range(1, 6):
        gradient = torch.tensor([0.5, -1.0, 2.0]) * step
        weights.grad = gradient.clone()
        optimizer.step()
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        expected = (1 - 0.1 * 0.5) * expected
        expected = expected - 0.1 * (mean / (1 - 0.8**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-6)
    torch.testing.assert_close(weights.detach().double(), expected, rtol=1e-5, atol=1e-6)
