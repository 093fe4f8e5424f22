"""Records what a CPU computes as a GPU's graphs do, and refuses what they refuse."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from lockstep.workers.engine import graphs, ledger
from lockstep.workers.engine.compiler import call_without_import

aten = torch.ops.aten
WAITING = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.equal.default,
        aten.is_nonzero.default,
        aten.masked_select.default,
        aten.nonzero.default,
        aten.unique_dim.default,
        aten._unique2.default,
    }
)
"""What has a GPU's host wait for a value, on which the shape of what follows may depend."""


def alias(value: Any) -> Any:
    """A tensor's memory, as it is laid out at the moment; anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value


class Recording(TorchDispatchMode):
    """Keeps the operations that are called, with the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, bool, list[Any]]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {operation}")
        flat, structure = tree_flatten((args, kwargs or {}))
        inputs = [alias(value) for value in flat]  # as they are now: an operation may give its input another shape
        outputs = operation(*args, **(kwargs or {}))
        kept = [alias(value) for value in tree_flatten(outputs)[0]]
        self.operations.append((operation, inputs, structure, torch.is_grad_enabled(), kept))
        return outputs

    def replay(self) -> None:
        for operation, flat, structure, may_need_gradients, outputs in self.operations:
            args, kwargs = tree_unflatten(flat, structure)
            with torch.set_grad_enabled(may_need_gradients):
                again = tree_flatten(operation(*args, **kwargs))[0]
            for old, new in zip(outputs, again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


call_without_import(Recording.__torch_dispatch__)


class HostRecorder:
    """A `Recorder` on a CPU.

    Attributes:
        recorded: how often something was recorded.
        replayed: how often something was computed again.
    """

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        with Recording() as recording:
            work()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return replay

    def drawn_beside(self) -> object:
        return graphs.host_draws()


@contextlib.contextmanager
def shards_by(recorder: graphs.Recorder | None) -> Iterator[None]:
    """Have shards be recorded by a recorder, or by none; no steps but the first are looked into, however slow it is."""
    with (
        mock.patch.object(graphs, "recorder_of", lambda device: recorder),
        mock.patch.object(ledger, "SAMPLED_EVERY_S", math.inf),
    ):
        yield
