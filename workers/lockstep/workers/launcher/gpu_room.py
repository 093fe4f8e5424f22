"""Whether a node has a GPU for a worker: several may share one, but each one's part has to be of one GPU."""

import math
from collections import defaultdict
from collections.abc import Iterable

EXACT = 1e-4 / 2
"""Ray counts in ten-thousandths."""


def has_room(gpus: float, usable: float, held: Iterable[tuple[float, tuple[str, ...]]]) -> bool:
    """Whether a worker that holds so many GPUs would get them on a node.

    Which GPU a worker shares is known when it is up. For one that is not, Ray's choice is foreseen: the fullest GPU on
    which there is room.

    Args:
        gpus: whole ones, or a part of one.
        usable: GPUs of the node, without those that others on the cluster hold.
        held: what each process of ours holds there, and of which GPUs, as Ray names them; none while that is not known.
    """
    shares: defaultdict[str, float] = defaultdict(float)
    whole, unknown = 0.0, []
    for part, gpu_ids in held:
        if part >= 1:
            whole += part
        elif part > 0 and len(gpu_ids) == 1:
            shares[gpu_ids[0]] += part
        elif part > 0:
            unknown.append(part)
    free = [1.0 - share for share in shares.values()]
    free += [1.0] * (math.floor(usable - whole + EXACT) - len(shares))
    for part in sorted(unknown, reverse=True):
        if fitting := [there for there in free if there + EXACT >= part]:
            free.remove(min(fitting))
            free.append(min(fitting) - part)
    if gpus >= 1:
        return sum(there + EXACT >= 1 for there in free) + EXACT >= gpus
    return gpus == 0 or any(there + EXACT >= gpus for there in free)
