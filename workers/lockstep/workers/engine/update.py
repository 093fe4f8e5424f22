"""How a gradient is applied: the optimizer, over one flat parameter or over the module's own."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lockstep.workers.engine.compiler import step
from lockstep.workers.engine.errors import ModelError, Parameter
from lockstep.workers.engine.flat_model import FlatModel
from lockstep.workers.engine.state.optimizer_state import Constants

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
)
"""Optimizers that treat each number by itself: for them one flat parameter is as good as many, and faster."""


class Update:
    """Applies gradients.

    Optimizers that are not known to treat each number by itself get the module's own parameters, whose gradients are
    views of the flat one while they step: they compute what they do in plain PyTorch.

    Args:
        factory: makes the optimizer over a list of parameters.
        model: whose parameters they are.

    Attributes:
        optimizer: what it made.
        is_flat: whether it works on the flat parameter.

    Raises:
        ModelError: it did not make an optimizer that can be used.
    """

    def __init__(self, factory: OptimizerFactory, model: FlatModel) -> None:
        self._model = model
        self.optimizer = factory(list(model.trainable))
        check_optimizer(self.optimizer, model)
        self.is_flat = False
        if treats_numbers_alone(self.optimizer) and is_over(self.optimizer, model.trainable):
            flat = factory([model.parameters])
            # A factory that takes the parameters from elsewhere has made the same as before.
            if is_over(flat, [model.parameters]):
                self.optimizer, self.is_flat = flat, True
        self._constants = Constants(self.optimizer)
        self._is_first_step = True

    def apply(self, gradient: Tensor) -> None:
        """Update the parameters with a gradient, (size,).

        Raises:
            ModelError: the optimizer has changed its own rate, which is no part of the state, or keeps what cannot be.
        """
        model = self._model
        model.parameters.grad = gradient
        if self.is_flat:
            step(self.optimizer)
        else:
            for parameter, part in zip(model.trainable, model.parts_of(gradient), strict=True):
                parameter.grad = part
            step(self.optimizer)
            model.put_gradients_back()
        self._constants.check()
        if self._is_first_step:
            self._constants.check_all(gradient)
            self._is_first_step = False

    @property
    def rate(self) -> Parameter:
        """Its learning rate, for who reads why training has failed."""
        return Parameter("learning_rate", f"learning rate of {type(self.optimizer).__name__}")

    def decays(self) -> bool:
        """Whether parameters shrink without a gradient."""
        return any(group.get("weight_decay") for group in self.optimizer.param_groups)


def check_optimizer(optimizer: Any, model: FlatModel) -> None:
    """Check that an optimizer can be used.

    Raises:
        ModelError: it cannot; says why.
    """
    kind = type(optimizer).__name__
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ModelError(f"the optimizer is a {kind}; return a torch.optim.Optimizer")
    if needs_closure(optimizer):
        raise ModelError(
            f"{kind} computes the loss several times in a step, which is not supported; use an optimizer whose step "
            "needs no closure"
        )
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise ModelError("SparseAdam needs sparse gradients, which are not supported; use Adam")
    known = {id(parameter) for parameter in model.trainable}
    if any(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"]):
        raise ModelError(
            f"{kind} was made over parameters that are not trained here; make it over the list that the function is "
            "given, or over parameters of the module that are not frozen"
        )


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` cannot be called without one."""
    closure = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def treats_numbers_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step is that of an elementwise optimizer of torch."""
    steps = {inspect.unwrap(kind.step) for kind in ELEMENTWISE if isinstance(optimizer, kind)}
    return inspect.unwrap(type(optimizer).step) in steps


def is_over(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> bool:
    """Whether it has one group, of exactly these parameters."""
    if len(optimizer.param_groups) != 1:
        return False
    own = optimizer.param_groups[0]["params"]
    return len(own) == len(parameters) and all(a is b for a, b in zip(own, parameters, strict=True))
