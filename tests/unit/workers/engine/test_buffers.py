"""Which buffers are restored and exchanged, and how several values become one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Group, ModelError
from lockstep.workers.engine.buffers.buffers import Buffers
from lockstep.workers.engine.buffers.policies import POLICIES, allowed_for, combine_mean, combine_sum
from lockstep.workers.engine.exchange.shards import Placement


class Layer(nn.Module):
    mask: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((64, 64), -math.inf))
        self.register_buffer("total", torch.zeros(3))


def live(buffers: Buffers) -> set[str]:
    return {kept.name for kept in buffers.kept if kept.is_live}


NORM = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_only_buffers_that_some_shard_has_changed_are_exchanged() -> None:
    layer = Layer()
    buffers = Buffers(layer, shards=2)
    buffers.agree(Group())
    assert live(buffers) == NORM, "what is known to change is so from the beginning"
    buffers.note()
    layer.norm(torch.randn(4, 2))
    assert not buffers.have_changed()
    layer.total += 1
    assert buffers.have_changed(), "the step must be repeated"
    buffers.agree(Group())
    assert live(buffers) == NORM | {"total"}
    assert layer.total.tolist() == [0, 0, 0], "everything is as it was before the step"
    assert not buffers.have_changed()


def test_a_write_that_is_not_counted_is_found_in_the_first_step_of_a_generation() -> None:
    layer = Layer()
    buffers = Buffers(layer, shards=2)
    buffers.enter()
    layer.total.data.add_(1)
    assert buffers.have_changed()
    buffers.agree(Group())
    assert live(buffers) == NORM | {"total"}
    assert layer.total.tolist() == [0, 0, 0]


def test_what_is_live_on_one_rank_is_so_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers = Buffers(Layer(), shards=2)
    group = Group()
    names = [kept.name for kept in buffers.kept]
    other = torch.tensor([int(name == "total") for name in names])
    monkeypatch.setattr(group, "gather", lambda mine: torch.stack((mine, other)))
    buffers.agree(group)
    assert live(buffers) == NORM | {"total"}


def test_a_buffer_keeps_its_shape_and_dtype() -> None:
    layer = Layer()
    buffers = Buffers(layer, shards=1)
    layer.total = torch.zeros(4)
    with pytest.raises(Exception, match=r"buffer total was replaced by torch.float32 \[4\], but is .* \[3\]"):
        buffers.undo()


def test_a_tied_buffer_that_is_replaced_in_one_place_stays_tied() -> None:
    layer = Layer()
    layer.twin = nn.Module()
    layer.twin.register_buffer("total", layer.total)
    buffers = Buffers(layer, shards=1)
    own, placement = layer.total, Placement.deal(1, 1)
    for _ in range(2):
        buffers.note()
        layer.twin.total = layer.total + 1
        assert buffers.have_changed() == (live(buffers) == NORM)
        if live(buffers) == NORM:
            buffers.agree(Group())
            layer.twin.total = layer.total + 1
        buffers.take_back()
        buffers.keep(0)
        buffers.exchange(Group(), placement)
        buffers.combine(1)
    assert layer.total is layer.twin.total is own
    assert own.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("before", "rows", "expected"),
    [
        ([1.0], [[2.0], [4.0]], [3.0]),
        ([math.inf], [[2.0], [4.0]], [3.0]),
        ([-math.inf], [[-math.inf], [-math.inf]], [-math.inf]),
        ([math.inf], [[2.0], [math.inf]], [math.inf]),
        ([0.0], [[math.inf], [1.0]], [math.inf]),
        ([0.1], [[0.1], [0.1], [0.1]], [0.1]),
    ],
)
def test_the_mean_of_shards_is_right_from_and_to_infinity(before: Any, rows: Any, expected: Any) -> None:
    mean = combine_mean(torch.tensor(rows), torch.tensor(before))
    assert torch.equal(mean, torch.tensor(expected))


def test_sums_of_integers_are_exact_and_wrap_as_they_do() -> None:
    before = torch.tensor([2**53, 200])
    rows = before + torch.tensor([[1, 1], [3, 5]])
    assert combine_sum(rows, before).tolist() == [2**53 + 4, 206]
    down: Tensor = combine_sum(torch.tensor([[199], [198]], dtype=torch.uint8), torch.tensor([200], dtype=torch.uint8))
    assert down.tolist() == [197]


DTYPES_OF_BUFFERS = (
    *(torch.bool, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", DTYPES_OF_BUFFERS)
def test_a_policy_is_refused_at_the_start_or_can_be_computed(dtype: torch.dtype, policy: str) -> None:
    class Own(nn.Module):
        value: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.buffer_policies = {"value": policy}
            self.register_buffer("value", torch.zeros(3, dtype=dtype))

    layer = Own()
    if policy not in allowed_for(dtype):
        with pytest.raises(ModelError, match=f"buffer_policies says '{policy}' of value"):
            Buffers(layer, shards=2)
        return
    buffers = Buffers(layer, shards=2)
    for _ in range(2):  # in the first it becomes live
        buffers.note()
        for shard in range(2):
            buffers.restore()
            layer.value.copy_(torch.ones(3))
            buffers.keep(shard)
        if buffers.have_changed():
            buffers.agree(Group())
    buffers.check_same(2)
    buffers.combine(2)
    expected = 2 if policy == "sum" else 1
    assert layer.value.tolist() == torch.full((3,), expected, dtype=torch.int64).to(dtype).tolist()
