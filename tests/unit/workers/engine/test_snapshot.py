"""What the audit reads of attributes: of all kinds and any size, what cannot be read is left alone."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lockstep.workers.engine import Activity, Listener, NotDeterministic, Regressor, Trainer
from lockstep.workers.engine.audit.attributes import LARGE_BYTES, States
from lockstep.workers.engine.audit.snapshot import content
from tests.support.honest_models import Numbers, Points, sgd

HUGE_BYTES = 1 << 40


def state_of(value: Any) -> Any:
    return States(lambda value: isinstance(value, Holding)).of(value)


@pytest.fixture(autouse=True)
def tensors_of_rare_kinds_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Holding(Numbers):
    """Holds something in an attribute, and does something to it whenever it trains."""

    def __init__(self, held: Any, change: Callable[["Holding"], Any] = lambda model: None) -> None:
        super().__init__()
        self.held, self.change = held, change

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.change(self)
        return super().forward(inputs)


def train(model: Regressor, data: Points | None = None, audit: str = "start") -> list[Activity]:
    """All activities."""
    entered: list[Activity] = []
    listener = Listener()
    listener.entered = lambda activity, step: entered.append(activity)  # type: ignore[method-assign]
    Trainer(max_steps=1, batch_size=20, shards=2, audit=audit).fit(model, data or Points(), sgd, listener=listener)
    return entered


def edges(size: int) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1), (size, size))


KINDS: dict[str, Callable[[], Any]] = {
    "dates": lambda: np.array(["2020-01-01"], dtype="datetime64[D]"),
    "durations": lambda: np.array([3], dtype="timedelta64[s]"),
    "strings": lambda: np.array(["one", "other"]),
    "strings of any length": lambda: np.array(["one" * 100], dtype=np.dtypes.StringDType()),
    "records": lambda: np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
    "records of objects": lambda: np.array([(1, "one")], dtype=[("a", int), ("b", object)]),
    "objects": lambda: np.array([object()]),
    "masked": lambda: np.ma.array([1, 2], mask=[False, True]),
    "an array without elements": lambda: np.zeros((0, 3)),
    "an array of none of its own": lambda: np.zeros((3, 4))[::2].T,
    "a number in an array": lambda: np.zeros(()),
    "sparse": lambda: edges(3),
    "sparse, of a large graph": lambda: edges(200_000),
    "sparse, compressed": lambda: torch.eye(3).to_sparse_csr(),
    "sparse, compressed by columns": lambda: torch.eye(3).to_sparse_csc(),
    "sparse, in blocks": lambda: torch.eye(4).to_sparse_bsr((2, 2)),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "nested, jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8),
    "without memory": lambda: torch.empty(1 << 40, device="meta"),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "inference": torch.inference_mode()(lambda: torch.ones(3)),
    "expanded": lambda: torch.ones(1).expand(1 << 40),
    "of oneDNN": lambda: torch.eye(3).to_mkldnn(),
}
"""What people keep in attributes."""


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_of_any_kind_that_nobody_changes_is_no_state(kind: str) -> None:
    train(Holding(KINDS[kind]()))


def add(model: Holding) -> None:
    model.held = model.held + model.held


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Holding], Any]]] = {
    "dates": (KINDS["dates"], lambda model: np.add(model.held, 1, out=model.held)),
    "sparse": (KINDS["sparse"], add),
    "sparse, compressed": (KINDS["sparse, compressed"], lambda model: model.held.values().add_(1.0)),
    "nested, jagged": (KINDS["nested, jagged"], lambda model: model.held.values().add_(1.0)),
    "quantised": (
        KINDS["quantised"],
        lambda model: setattr(
            model, "held", torch.quantize_per_tensor(torch.ones(3) + model.held.dequantize(), 0.1, 0, torch.quint8)
        ),
    ),
    "an array": (lambda: np.zeros(3), lambda model: model.held.__iadd__(1)),
    "a large tensor": (lambda: torch.zeros(LARGE_BYTES // 4 + 1), lambda model: model.held[7].add_(1)),
    "a large array": (
        lambda: np.zeros(LARGE_BYTES),
        lambda model: model.held.__setitem__(slice(9_000_000), model.held[0] + 1),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_an_attribute_that_carries_something_on_is_one(kind: str) -> None:
    held, change = CHANGES[kind]
    with pytest.raises(NotDeterministic, match="held of Holding"):
        train(Holding(held(), change))


def test_a_large_tensor_that_each_shard_writes_anew_is_none() -> None:
    train(Holding(torch.zeros(LARGE_BYTES // 4 + 1), lambda model: model.held.fill_(3.0)))
    train(Holding(torch.zeros(LARGE_BYTES // 4 + 1), lambda model: setattr(model, "held", torch.zeros(LARGE_BYTES))))


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_a_map_of_a_file_that_can_be_written_may_carry_something_on(tmp_path: Path, mode: str) -> None:
    np.zeros(3).tofile(tmp_path / "array")
    held = np.memmap(tmp_path / "array", np.float64, mode)  # type: ignore[call-overload]
    with pytest.raises(NotDeterministic, match="held of Holding"):
        train(Holding(np.asarray(held), lambda model: model.held.__iadd__(1)))


def test_another_part_of_a_large_file_or_another_file_is_another_state(tmp_path: Path) -> None:
    def mapped(name: str) -> np.ndarray:
        with (tmp_path / name).open("wb") as file:
            file.truncate(2 * LARGE_BYTES + 100)
        return np.memmap(tmp_path / name, np.uint8, "r")

    one, other = mapped("one"), mapped("other")
    size = LARGE_BYTES + 100
    views = [one[:size], np.asarray(one)[100 : size + 100], other[:size], one[: 2 * size : 2], one[:size].view(np.int8)]
    assert len({state_of(view) for view in views}) == len(views)
    assert state_of(one[50:][50 : size + 50]) == state_of(views[1]), "the same, however it was cut"
    with (tmp_path / "few").open("wb") as file:
        file.write(b"few")
    few = np.memmap(tmp_path / "few", np.uint8, "r")
    before = state_of(few)
    (tmp_path / "few").write_bytes(b"new")
    assert state_of(few) != before, "a small one is read"


def test_data_of_any_size_is_not_read_as_a_whole(tmp_path: Path) -> None:
    for name in ("array", "tensor"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(HUGE_BYTES)
    data = Points()
    data.rows = np.memmap(tmp_path / "array", np.float32, "r", shape=(HUGE_BYTES // 400, 100))  # type: ignore[attr-defined]
    data.columns, data.plain = data.rows.T, np.asarray(data.rows)  # type: ignore[attr-defined]
    data.pixels = torch.from_file(str(tmp_path / "tensor"), shared=True, size=HUGE_BYTES, dtype=torch.uint8)  # type: ignore[attr-defined]
    train(Numbers(), data)


def test_there_is_a_sign_of_life_before_each_of_what_is_read() -> None:
    def signs(count: int, name: str) -> int:
        model, data = Numbers(), Points()
        for number in range(count):
            if name == "buffers":
                model.register_buffer(f"buffer_{number}", torch.zeros(3))
            else:
                setattr(data, f"{name}_{number}", np.zeros(3) if name == "arrays" else torch.zeros(3))
        return train(model, data).count(Activity.COMPUTE)

    plain = signs(0, "")
    assert signs(20, "arrays") == signs(20, "tensors") == plain + 2 * 20, "they are read twice"
    assert signs(20, "buffers") == plain + 3 * 20, "they are read three times"


class Counted(Points):
    """Counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def transform(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs


@pytest.mark.parametrize("data_of_the_model", ["a string", nn.Linear(8, 1)])
def test_the_data_and_an_attribute_of_that_name_are_told_apart(data_of_the_model: Any) -> None:
    model = Numbers()
    model.data = data_of_the_model
    if isinstance(data_of_the_model, nn.Linear):
        data_of_the_model.calls = 3  # type: ignore[assignment]
        data_of_the_model.requires_grad_(False)
    with pytest.raises(NotDeterministic, match=r"data\.calls of Counted is a plain number.* outside of the data"):
        train(model, Counted())


class Thrifty(Numbers):
    """Counts its calls, for nothing, in a number or as the audit says."""

    def __init__(self, in_a_buffer: bool) -> None:
        super().__init__()
        if in_a_buffer:
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        else:
            self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(inputs)


def test_who_counts_for_nothing_is_told_the_way_out_and_it_is_one() -> None:
    hint = 'self.register_buffer("calls", torch.zeros((), dtype=torch.int64))'
    with pytest.raises(NotDeterministic, match="keep it outside of the model") as caught:
        train(Thrifty(in_a_buffer=False))
    assert hint in str(caught.value)
    train(Thrifty(in_a_buffer=True))


def test_contents_tell_bits_and_their_order() -> None:
    numbers = torch.arange(4_000_000, dtype=torch.float32)
    moved = numbers.clone()
    moved[[7, 3_999_999]] = moved[[3_999_999, 7]]
    flipped = numbers.clone()
    flipped[2_500_000] = -flipped[2_500_000]
    assert len({content(each) for each in (numbers, moved, flipped, numbers[1:], numbers[:-1])}) == 5
    assert content(numbers) == content(numbers.clone()) == content(numbers.view(2000, 2000))
    assert content(torch.tensor([0.0])) != content(torch.tensor([-0.0]))
    assert content(torch.tensor(torch.nan)) == content(torch.tensor(torch.nan))
    for dtype in (torch.bool, torch.int8, torch.bfloat16, torch.complex64, torch.float64):
        assert content(torch.ones(5, dtype=dtype)) != content(torch.zeros(5, dtype=dtype))
    assert content(torch.empty(0)) == 0


def test_a_change_anywhere_in_a_large_array_is_seen_if_it_is_long() -> None:
    array = np.zeros((3 * LARGE_BYTES // 100, 100), np.uint8)
    before = state_of(array)
    for start in (0, 1_000_000, len(array) - 4_000):
        changed = array.copy()
        changed[start : start + 4_000] = 1
        assert state_of(changed) != before
    assert state_of(array.copy()) == before
