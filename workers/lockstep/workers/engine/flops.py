"""How many floating-point operations something takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def counted_flops() -> Iterator[Callable[[], int]]:
    """Count those of the matrix products, convolutions and attentions, forward and backward, of this thread.

    Yields:
        Tells how many there were.
    """
    from torch.utils.flop_counter import FlopCounterMode  # late, as it is needed once

    with FlopCounterMode(display=False) as counter:
        yield counter.get_total_flops
