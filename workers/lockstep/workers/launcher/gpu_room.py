"""Which of a node's GPUs a worker would get: several may share one, but each one's part has to be of one GPU.

Ray gives a part of the fullest GPU on which there is room. Which one a worker has got is known when it is up; for
others Ray's choice is foreseen, in the order in which they were made.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from lockstep.contract.spec.resources import UNITS

EXACT = 0.5 / UNITS
"""How far sums of shares may be off."""

Held = tuple[float, tuple[str, ...]]
"""What a process holds, and of which GPUs, as Ray names them; none while that is not known."""


def has_room(gpus: float, usable: float, held: Iterable[Held]) -> bool:
    """Whether a worker that holds so many GPUs would get them on a node.

    Args:
        gpus: whole ones, or a part of one.
        usable: GPUs of the node, without those that others on the cluster hold.
        held: what each process of ours holds there.
    """
    free = list(_free(usable, held).values())
    if gpus >= 1:
        return sum(there + EXACT >= 1 for there in free) + EXACT >= gpus
    return gpus == 0 or any(there + EXACT >= gpus for there in free)


def is_as_planned(share: float, gpu_id: str, usable: float, working: Iterable[Held]) -> bool:
    """Whether a GPU is as good for a share as the one that the coordinator has planned with.

    Args:
        share: part of a GPU.
        gpu_id: the GPU, as Ray names it.
        usable: likewise.
        working: what each process that works for a job holds there: the plan knows of no others.
    """
    free = _free(usable, working)
    planned = [there for there in free.values() if there + EXACT >= share]
    return bool(planned) and abs(free.get(gpu_id, 1.0) - min(planned)) < EXACT


def is_led_astray(share: float, usable: float, working: Sequence[Held], idle: Sequence[Held]) -> bool:
    """Whether idle processes may have Ray choose a GPU that is not as good as the planned one; see `is_as_planned`."""
    free = _free(usable, [*working, *idle])
    fitting = [there for there in free.values() if there + EXACT >= share]
    chosen = [gpu_id for gpu_id, there in free.items() if fitting and abs(there - min(fitting)) < EXACT]
    return not all(is_as_planned(share, gpu_id, usable, working) for gpu_id in chosen)


def _free(usable: float, held: Iterable[Held]) -> dict[str, float]:
    """What is free of each GPU, by its name in Ray; those of which nobody is known to hold a part have other names."""
    shares: defaultdict[str, float] = defaultdict(float)
    whole, unknown = 0.0, []
    for part, gpu_ids in held:
        if part >= 1:
            whole += part
        elif part > 0 and len(gpu_ids) == 1:
            shares[gpu_ids[0]] += part
        elif part > 0:
            unknown.append(part)
    free = {gpu_id: 1.0 - share for gpu_id, share in shares.items()}
    left = usable - whole - len(shares)
    free |= {f"whole {number}": 1.0 for number in range(math.floor(left + EXACT))}
    if (rest := left - math.floor(left + EXACT)) > EXACT:  # others hold the rest of one, maybe of another
        free["rest"] = rest
    for part in unknown:
        if fitting := [(there, gpu_id) for gpu_id, there in free.items() if there + EXACT >= part]:
            free[min(fitting)[1]] -= part
    return free
