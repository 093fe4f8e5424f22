"""PyTorch's compiler: set up for whoever compiles, and spared to everyone else, as its import takes more than a second.

torch imports it for a call of an optimizer's `step` and of other functions that it hides from the compiler. Nothing has
to be hidden from a compiler that is not there.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

import torch
from torch.utils import checkpoint, flop_counter

COMPILED_SHAPES = 64
"""For how many shapes one function may be compiled: the shards of a job have a few sizes."""


def _compile_each_shape(config: Any) -> None:
    config.automatic_dynamic_shapes = False
    config.recompile_limit = max(config.recompile_limit, COMPILED_SHAPES)
    config.fail_on_recompile_limit_hit = True


def _choose_kernels_by_rule(config: Any) -> None:
    config.deterministic = True


_SETTINGS: dict[str, Callable[[Any], None]] = {
    "torch._dynamo.config": _compile_each_shape,
    "torch._inductor.config": _choose_kernels_by_rule,
}


def fix_compiler() -> None:
    """Have torch.compile compile a function for each shape by itself, and choose kernels by no measurement.

    Otherwise the second shape that a process sees is compiled for any shape from then on, with other kernels, and which
    size of shard comes second depends on the number of workers. Beyond its limit it would go on without compiling.

    Holds now or from the moment on in which something imports the compiler.
    """
    for name, set_up in _SETTINGS.items():
        if name in sys.modules:
            set_up(sys.modules[name])
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the settings of the compiler when they are imported first."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _SETTINGS else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _SETTINGS[self.name](module)


def is_imported() -> bool:
    """Whether something has imported the compiler, as all that compiles does."""
    return "torch._dynamo" in sys.modules


def spare_import() -> None:
    """Have optimizers be made, operations be counted, and re-entrant checkpoints be taken without the compiler."""
    optimizer, counting = torch.optim.Optimizer, flop_counter._FlopCounterMode
    for hidden in (
        optimizer.add_param_group,
        optimizer.load_state_dict,
        optimizer.state_dict,
        optimizer.zero_grad,
        counting.__torch_dispatch__,
        checkpoint.checkpoint,
    ):
        call_without_import(hidden)


def call_without_import(hidden: Callable[..., Any]) -> None:
    """Have a function that torch hides from the compiler be called without it."""
    function: Any = inspect.unwrap(hidden)
    if not hasattr(function, "__dynamo_disable"):
        function.__dynamo_disable = function  # where torch looks for what it has made of it


def step(optimizer: torch.optim.Optimizer) -> None:
    """Call an optimizer's `step`; that of torch's own without what torch wraps around it for compiler and hooks."""
    if is_imported() or not _has_plain_step(optimizer):
        optimizer.step()
        return
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)


def _has_plain_step(optimizer: torch.optim.Optimizer) -> bool:
    common: Any = import_module("torch.optim.optimizer")  # torch hides it
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        common._global_optimizer_pre_hooks,
        common._global_optimizer_post_hooks,
    )
    return (
        type(optimizer).__module__.startswith("torch.optim.")
        and "step" not in vars(optimizer)
        and not optimizer.defaults.get("differentiable")
        and not any(hooks)
    )


def without_compiling() -> contextlib.AbstractContextManager[object]:
    """A context in which torch.compile compiles nothing, so that the first shapes that it sees are those of shards."""
    if not is_imported():
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def forget_compiled_code() -> None:
    """Have torch.compile begin anew: what it has compiled, or has given up to compile, is kept with the code itself.

    The code of models is imported once, so that the next job would meet it as the one before has left it.
    """
    if is_imported():
        torch.compiler.set_stance("default")
        torch.compiler.reset()
