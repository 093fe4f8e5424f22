"""The exchange of a large model's gradients, bucket by bucket, while the backward pass still computes others.

A backward pass completes gradients from the end of the row to its front, where they lie that come last. Every rank
exchanges the buckets in that order, whenever it gets to them; so ranks need not agree on what overlaps with what.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from lockstep.workers.engine.exchange import reduce
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.reduce import ChunkExchange, Exchange, ShardSums, SwapExchange, is_small
from lockstep.workers.engine.exchange.shards import Placement
from lockstep.workers.engine.exchange.streams import Line, line_of
from lockstep.workers.engine.flat_model import FlatModel


class OverlappedExchange(ChunkExchange):
    """A `ChunkExchange` that begins with a bucket as soon as this rank's part of it is complete.

    Args:
        model: whose gradients lie in the row.
        front: elements of the row before the gradients.
    """

    def __init__(self, placement: Placement, group: Group, sums: ShardSums, model: FlatModel, front: int) -> None:
        bucket_bytes = reduce.BUCKET_BYTES if group.holds_up_the_host else reduce.DEVICE_BUCKET_BYTES
        super().__init__(placement, group, sums, bucket_bytes)
        line = line_of(sums.rows.device)
        self._lane = ThreadLane(line) if group.holds_up_the_host else StreamLane(line)
        self._backward = Backward(model, front, self._begin_until)
        self._begun = 0

    def before_last(self) -> None:
        self._backward.begin()

    def total(self) -> Tensor:
        self._backward.end()
        self._begin_until(0)
        self._begun = 0
        self._lane.join()
        return self.sums.rows[0]

    def close(self) -> None:
        self._backward.close()
        self._lane.close(self.group)

    def _begin_until(self, position: int) -> None:
        """Begin with all buckets behind a position in the row."""
        while self._begun < len(self.buckets) and self.buckets[self._begun].start >= position:
            bucket = self.buckets[self._begun]
            self._begun += 1
            self._lane.run(partial(self.complete, bucket))


class Backward:
    """Follows the backward pass of one shard: up to where it has completed the gradients, from the end.

    Args:
        model: whose gradients are computed.
        front: elements of the row before the gradients.
        reached: told of the position in the row behind which everything is complete.
    """

    def __init__(self, model: FlatModel, front: int, reached: Callable[[int], None]) -> None:
        self._model, self._reached = model, reached
        self._starts = [front + start for start in model.starts]
        self._is_complete: list[bool] = []
        self._first_complete = 0
        self._is_followed = False
        self._hooks = model.when_added(self._added)

    def begin(self) -> None:
        """A backward pass comes next."""
        self._is_complete = [False] * len(self._starts)
        self._first_complete = len(self._starts)
        self._is_followed = bool(self._model.gradients_come_whole)

    def end(self) -> None:
        """It is over, if there was one."""
        self._is_followed = False

    def close(self) -> None:
        """Follow no longer."""
        for hook in self._hooks:
            hook.remove()

    def _added(self, index: int) -> None:
        if not self._is_followed:
            return
        if self._is_complete[index]:  # it comes in parts, which it did not before; the stepper repeats the step
            return
        self._is_complete[index] = True
        if index != self._first_complete - 1:
            return
        while self._first_complete and self._is_complete[self._first_complete - 1]:
            self._first_complete -= 1
        self._reached(self._starts[self._first_complete])


class ThreadLane:
    """Runs what it is given in one other thread, in order, until something fails: for exchanges that hold up the host.

    Args:
        line: of the device; what is run comes behind what the device was given before.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._executor = ThreadPoolExecutor(1, "exchange")
        self._pending: list[Future[None]] = []
        self._has_failed = False

    def run(self, work: Callable[[], None]) -> None:
        """Have something done."""
        self._pending.append(self._executor.submit(self._attempt, work, self._line.note()))

    def join(self) -> None:
        """Wait until all is done; raises what the first failure raised."""
        pending, self._pending = self._pending, []
        concurrent.futures.wait(pending)
        for future in pending:
            future.result()
        self._line.join()

    def close(self, group: Group) -> None:
        """Do no more, and break what is being waited for."""
        if any(not future.done() for future in self._pending):
            group.break_off()
        self._executor.shutdown(cancel_futures=True)
        leave(self._line)

    def _attempt(self, work: Callable[[], None], mark: torch.cuda.Event | None) -> None:
        if self._has_failed:  # the others may take what would be sent now for what failed
            return
        try:
            with self._line.behind(mark):
                work()
        except BaseException:
            self._has_failed = True
            raise


class StreamLane:
    """Runs what it is given on another line of the device: for exchanges that the device does by itself.

    Args:
        line: likewise.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def run(self, work: Callable[[], None]) -> None:
        """Have something done."""
        with self._line.behind(self._line.note()):
            work()

    def join(self) -> None:
        """Have what the device is given next wait until all is done."""
        self._line.join()

    def close(self, group: Group) -> None:
        """Nothing waits on the host."""
        leave(self._line)


def leave(line: Line) -> None:
    """Have the device finish a line before anything else: what was given up may still write into memory that is reused.

    What is wrong with the device is told by what computes there.
    """
    with contextlib.suppress(RuntimeError):
        line.join()


def choose_exchange(placement: Placement, group: Group, sums: ShardSums, model: FlatModel, front: int) -> Exchange:
    """The fastest exchange for this placement and size; each gives the same bits."""
    if placement.world_size == 1:
        return Exchange(placement, group, sums)
    if is_small(placement, sums.rows[0].nbytes):
        return SwapExchange(placement, group, sums)
    return OverlappedExchange(placement, group, sums, model, front)
