"""How what the shards of a minibatch leave in a buffer becomes one value."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lockstep.workers.engine.errors import ModelError
from lockstep.workers.engine.exchange.shards import root, tree_sum

MEAN, SUM, MAX, MIN, SAME = "mean", "sum", "max", "min", "same"
POLICIES = (MEAN, SUM, MAX, MIN, SAME)
ATTRIBUTE = "buffer_policies"


def combine_mean(rows: Tensor, before: Tensor) -> Tensor:
    """Mean of the shards' values, by their changes: what none of them changes stays exactly as it was.

    An infinity is no number to add to; there the values themselves are added.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    base = before.to(wide).nan_to_num(0.0, 0.0, 0.0)
    return base + tree(rows.to(wide) - base) / len(rows)


def combine_sum(rows: Tensor, before: Tensor) -> Tensor:
    """What was there and what each shard has added."""
    wide = rows.dtype if not rows.is_floating_point() else torch.promote_types(rows.dtype, torch.float32)
    return before.to(wide) + tree(rows.to(wide) - before.to(wide))


def tree(rows: Tensor) -> Tensor:
    """Sum over the first dimension, in tree order; `rows` are overwritten."""
    return tree_sum(root(len(rows)), len(rows), lambda node: rows[node.position] if node.level == 0 else None)


COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    MEAN: combine_mean,
    SUM: combine_sum,
    MAX: lambda rows, before: rows.amax(0),
    MIN: lambda rows, before: rows.amin(0),
    SAME: lambda rows, before: rows[0],
}
"""From what each shard that ran has left, (shards, ...), and what was there before, to what is there then."""


def find_policies(module: nn.Module) -> dict[str, str]:
    """Policies by the full names of buffers; those of an outer layer win over those of an inner one."""
    policies: dict[str, str] = {}
    for path, layer in module.named_modules():
        for name, policy in getattr(layer, ATTRIBUTE, {}).items():
            policies.setdefault(f"{path}.{name}" if path else name, policy)
    return policies


def check_policy(name: str, dtype: torch.dtype, policy: str) -> None:
    """Check that a policy is one and fits the dtype of its buffer.

    Raises:
        ModelError: it does not.
    """
    if policy not in POLICIES:
        raise ModelError(f"{ATTRIBUTE} says {policy!r} of {name}; allowed: {', '.join(POLICIES)}")
    if policy not in allowed_for(dtype):
        raise ModelError(
            f"{ATTRIBUTE} says {policy!r} of {name}, which is {dtype}; allowed: {', '.join(allowed_for(dtype))}"
        )


def allowed_for(dtype: torch.dtype) -> tuple[str, ...]:
    """The policies that a buffer of this dtype may have."""
    if dtype == torch.bool:
        return (MAX, MIN, SAME)
    if dtype.is_complex:
        return (MEAN, SUM, SAME)
    if dtype.is_floating_point:
        return (SAME,) if dtype.itemsize == 1 else POLICIES
    if not dtype.is_signed and dtype.itemsize > 1:  # torch has no arithmetic for them
        return (SAME,)
    return (SUM, MAX, MIN, SAME)
