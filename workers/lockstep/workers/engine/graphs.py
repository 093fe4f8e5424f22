"""The shards of a GPU as graphs: what one launches is recorded once, and given to the GPU again at one stroke.

The kernels of a small model take less time than their launches. A graph reads the numbers of its examples from where
they were put, draws from the generators as they were seeded, and adds to the same row as the shard that was recorded:
the kernels and their order are those of a shard that is launched call by call, and so are the bits. That is compared
before a graph is relied on. A model that cannot be recorded, or does something beside the GPU, goes on call by call.
"""

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lockstep.workers.engine.errors import EngineError
from lockstep.workers.engine.tensor_memory import words

WARM_UPS = 2
"""How many shards of a size are computed call by call first: libraries set themselves up, buffers become live."""
COMPARISONS = 2
"""How many shards are computed both ways before a graph is relied on."""
MOST_GRAPHS = 4
"""For how many sizes of shards: two in each minibatch, and two in the last one of an epoch."""


class Recorder(Protocol):
    """Keeps what a device is given."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Keep what `work` gives to the device, which need not do it; returns what gives the same to the device again.

        Raises:
            RuntimeError: the work waits for the device, or does what else cannot be kept.
        """

    def drawn_beside(self) -> object:
        """What changes when something draws from a generator that is not the device's."""


class CudaRecorder:
    """On a GPU, by CUDA graphs that share their memory, since one runs after the other.

    Args:
        device: the GPU; the current stream must be none that others wait for by itself, as the default one is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        gc.collect()  # what is freed during the recording would be waited for
        torch.cuda.empty_cache()
        # Of other threads, such as that of NCCL, nothing is forbidden.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=torch.cuda.current_stream(self._device), capture_error_mode="thread_local"
        ):
            work()
        return graph.replay

    def drawn_beside(self) -> object:
        return host_draws(), bytes(torch.get_rng_state().tolist())


def host_draws() -> object:
    """The states of the generators of Python and NumPy."""
    return random.getstate(), repr(np.random.get_state(legacy=False))


def recorder_of(device: torch.device) -> Recorder | None:
    """What records on a device; None for a CPU, which has nothing to gain by it."""
    return CudaRecorder(device) if device.type == "cuda" else None


@dataclass
class Graph:
    """A shard of one size.

    Attributes:
        indices: where the numbers of its examples are put, int64, (n,).
        replay: computes it.
        comparisons: how often it is still to be compared with a shard that is computed call by call.
    """

    indices: Tensor
    replay: Callable[[], None]
    comparisons: int = COMPARISONS


class ShardGraphs:
    """Computes shards by graphs, as soon and as long as that gives the same bits.

    Args:
        recorder: records them.
        compute: computes a shard of the examples with these numbers, int64, (n,), call by call.
        outcome: returns the tensors that a shard adds to or writes; always the same until `forget`.
        dropped: has the module forget what it made while it could not be recorded, which was never computed.
        noted: told, once, why graphs are not used.

    Attributes:
        why_not: why graphs are not used; empty as long as they are.
    """

    def __init__(
        self,
        recorder: Recorder,
        compute: Callable[[Tensor], None],
        outcome: Callable[[], Sequence[Tensor]],
        dropped: Callable[[], None],
        noted: Callable[[str], None],
    ) -> None:
        self._recorder, self._compute, self._outcome = recorder, compute, outcome
        self._dropped, self._noted = dropped, noted
        self._graphs: dict[int, Graph] = {}
        self._computed: dict[int, int] = {}
        self.why_not = ""

    def forget(self) -> None:
        """What shards read or write has moved: record them anew."""
        self._graphs.clear()
        self._computed.clear()

    def prepare(self, indices: Tensor, seed: Callable[[], None]) -> None:
        """Record a shard of so many examples, or compare it, if that is due; before anything follows the real one.

        Args:
            indices: of the examples of the shard that comes next, int64, (n,).
            seed: seeds all generators for it.
        """
        size = len(indices)
        if size not in self._graphs:
            self._computed[size] = self._computed.get(size, 0) + 1
            if self.why_not or len(self._graphs) == MOST_GRAPHS or self._computed[size] <= WARM_UPS:
                return
            self._record(indices)
        graph = self._graphs.get(size)
        if graph is not None and graph.comparisons:
            self._compare(graph, indices, seed)

    def compute(self, indices: Tensor, seed: Callable[[], None]) -> None:
        """Compute the shard of the examples with these numbers, int64, (n,); `seed` seeds all generators for it."""
        seed()
        graph = self._graphs.get(len(indices))
        if graph is None or graph.comparisons:
            self._compute(indices)
        else:
            graph.indices.copy_(indices)
            graph.replay()

    def _record(self, indices: Tensor) -> None:
        own, before = indices.clone(), self._copies()
        try:
            self._graphs[len(indices)] = Graph(own, self._recorder.record(lambda: self._compute(own)))
        except EngineError:
            raise
        except Exception as error:  # a model may do anything, and CUDA tells of it in many ways
            self._dropped()
            self._give_up(f"it cannot be recorded: {_first_line(error)}")
        finally:
            self._put(before)

    def _compare(self, graph: Graph, indices: Tensor, seed: Callable[[], None]) -> None:
        """Compute a shard both ways, and undo it."""
        graph.comparisons -= 1
        graph.indices.copy_(indices)
        before = self._copies()
        seed()
        graph.replay()
        replayed = self._copies()
        self._put(before)
        seed()
        drawn = self._recorder.drawn_beside()
        self._compute(indices)
        pairs = zip(self._outcome(), replayed, strict=True)
        if drawn != self._recorder.drawn_beside():
            self._give_up("it draws from a generator of the host")
        elif not all(torch.equal(words(one), words(other)) for one, other in pairs):
            self._give_up("its bits were others")
        self._put(before)

    def _copies(self) -> list[Tensor]:
        return [tensor.clone() for tensor in self._outcome()]

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._outcome(), values, strict=True):
                tensor.copy_(value)

    def _give_up(self, why: str) -> None:
        self.why_not = why
        self.forget()
        self._noted(f"shards are computed call by call, which is slower, and not as a CUDA graph: {why}")


def graphs_of(
    device: torch.device,
    compute: Callable[[Tensor], None],
    outcome: Callable[[], Sequence[Tensor]],
    dropped: Callable[[], None],
    noted: Callable[[str], None],
) -> ShardGraphs | None:
    """Those of a rank that computes on a device, or None; see `ShardGraphs`."""
    recorder = recorder_of(device)
    return None if recorder is None else ShardGraphs(recorder, compute, outcome, dropped, noted)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0][:200]
