"""Checkpoints: on a disk, where a rename makes one whole, and where the manifest alone does."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from lockstep.workers.engine.state.checkpoint import Checkpoints, Damaged, read_weights
from lockstep.workers.engine.state.digest import digest_of
from lockstep.workers.engine.state.state import StateMismatch, TrainState, put_weights

ROOT = "memory://checkpoints/job"


@pytest.fixture(autouse=True)
def empty_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").rm("/", recursive=True)


def state(step: int) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    return TrainState(
        step,
        {"net.weight": torch.randn(3, 4, generator=generator), "counter": torch.tensor(step)},
        {"optimizer.0.momentum_buffer": torch.randn(12, generator=generator)},
        {"position": [step, True, False], "window": [[0.1, 1e-300, 3.0], 4, 5, 0.1], "optimizer": {"0.n": 7}},
    )


def assert_equal(one: TrainState, other: TrainState) -> None:
    assert (one.step, one.notes) == (other.step, other.notes)
    for mine, theirs in ((one.model, other.model), (one.training, other.training)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_written_is_read_back_bit_for_bit() -> None:
    checkpoints = Checkpoints(ROOT)
    checkpoints.write(state(7))
    assert_equal(checkpoints.read(7), state(7))
    weights = read_weights(f"{ROOT}/step-000000000007", most_bytes=10_000)
    assert_equal(dataclasses.replace(state(7), model=weights), state(7))
    assert_equal(TrainState.from_bytes(state(7).to_bytes()), state(7))


def test_what_others_wrote_and_removed_is_seen() -> None:
    ours, theirs = Checkpoints(ROOT), Checkpoints(ROOT)
    ours.write(state(1))
    for step in (2, 3):
        theirs.write(state(step))
    kept = ours.kept()
    assert [checkpoint.step for checkpoint in kept] == [3, 2, 1]
    assert kept == theirs.kept() == Checkpoints(ROOT).kept()
    assert kept[0].uri == f"{ROOT.replace('//', '///')}/step-000000000003"
    assert kept[0].weights_digest == digest_of(state(3).model)
    assert [file.name for file in kept[0].files] == ["model.safetensors", "training.safetensors", "manifest.json"]
    theirs.prune(3)
    fsspec.filesystem("memory").pipe("/checkpoints/job/step-000000000002/manifest.json", b"{}")
    assert [checkpoint.step for checkpoint in ours.kept()] == [3, 2], "what it knows it need not read again"
    assert [checkpoint.step for checkpoint in Checkpoints(ROOT).kept()] == [3]


def test_without_its_manifest_a_folder_is_no_checkpoint() -> None:
    checkpoints = Checkpoints(ROOT)
    for step in (1, 2):
        checkpoints.write(state(step))
    files = fsspec.filesystem("memory")
    files.rm_file("/checkpoints/job/step-000000000002/manifest.json")
    assert checkpoints.steps() == [1]
    with pytest.raises(Damaged, match=r"manifest\.json is missing"):
        checkpoints.read(2)


def test_all_but_the_newest_go() -> None:
    checkpoints = Checkpoints(ROOT, keep=2)
    for step in range(1, 6):
        checkpoints.write(state(step))
    checkpoints.prune(5)
    assert checkpoints.steps() == [5, 4]
    assert not fsspec.filesystem("memory").exists("/checkpoints/job/step-000000000001")


def test_checkpoints_of_later_steps_that_could_not_be_used_make_room_for_those_that_can() -> None:
    checkpoints = Checkpoints(ROOT, keep=2)
    for step in (400, 600, 200):
        Checkpoints(ROOT).write(state(step))
    checkpoints.take_over()
    checkpoints.write(state(250))
    checkpoints.prune(250)
    assert checkpoints.steps() == [250, 200]


def test_a_writer_that_was_cut_off_removes_nothing_of_its_successor() -> None:
    old, new = Checkpoints(ROOT), Checkpoints(ROOT)
    old.take_over()
    new.take_over()
    for writer, step in ((new, 300), (new, 400), (old, 200)):
        writer.write(state(step))
        writer.prune(step)
    assert new.steps() == [400, 300, 200]


@pytest.mark.parametrize("name", ["run[1]", "a*b?"])
@pytest.mark.parametrize("is_local", [True, False], ids=["on a disk", "elsewhere"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str, is_local: bool) -> None:
    parent = str(tmp_path) if is_local else ROOT
    like = name.translate(str.maketrans("*?", "xy", "[]"))  # what the name as a pattern stands for
    theirs = Checkpoints(f"{parent}/{like}")
    theirs.write(state(1))
    checkpoints = Checkpoints(f"{parent}/{name}")
    assert checkpoints.steps() == []
    for step in (1, 2, 3):
        checkpoints.write(state(step))
        checkpoints.prune(step)
    assert checkpoints.steps() == [3, 2]
    assert [checkpoint.step for checkpoint in checkpoints.kept()] == [3, 2]
    assert_equal(checkpoints.read(3), state(3))
    if is_local:
        (tmp_path / name / "unfinished-step-000000000004").mkdir()
        checkpoints.take_over()
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [f"step-{step:012}" for step in (2, 3)]
    assert theirs.steps() == [1], "another job's are left alone"


def half_written(state_to_write: TrainState, meanwhile: Callable[[], None]) -> TrainState:
    """A state that lets something happen when its weights are written and the rest is not."""

    class Training(dict[str, torch.Tensor]):
        def items(self) -> Any:
            meanwhile()
            return super().items()

    return dataclasses.replace(state_to_write, training=Training(state_to_write.training))


def test_two_writers_of_one_step_each_put_their_own_in_place(tmp_path: Path) -> None:
    old, new = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path))
    seen = []

    def write_too() -> None:
        new.write(state(7))
        seen.append(new.read(7))

    old.write(half_written(state(7), write_too))
    assert_equal(seen[0], state(7))
    assert_equal(old.read(7), state(7))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000007"]


def test_whoever_takes_over_cleans_up_and_what_was_begun_before_is_never_put_in_place(tmp_path: Path) -> None:
    old, new = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path))
    new.write(state(5))
    with pytest.raises(FileNotFoundError):
        old.write(half_written(state(7), new.take_over))
    assert new.steps() == [5]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000005"]


def test_pruning_leaves_what_another_writer_has_begun(tmp_path: Path) -> None:
    old, new = Checkpoints(str(tmp_path)), Checkpoints(str(tmp_path))
    old.write(state(5))
    new.write(half_written(state(7), lambda: old.prune(5)))
    assert_equal(new.read(7), state(7))


def test_weights_that_do_not_fit_are_named_and_change_nothing() -> None:
    module = torch.nn.Linear(4, 3)
    before = module.weight.clone()
    fitting = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    for weights, words in (
        ({"weight": torch.zeros(3, 4)}, "there is no bias"),
        (fitting | {"bias": torch.zeros(4)}, r"bias has shape \[4\], the model wants \[3\]"),
        (fitting | {"more": torch.zeros(4)}, "the model has no more"),
    ):
        with pytest.raises(StateMismatch, match=words):
            put_weights(weights, module)
        assert torch.equal(module.weight, before)
    put_weights(fitting, module)
    assert not module.weight.any()


class Buffered(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)
        self.register_buffer("scale", torch.ones(3), persistent=False)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    def of(groups: int = 1, momentum: float = 0.9) -> tuple[Buffered, torch.optim.Optimizer]:
        module = Buffered()
        parameters: Any = [{"params": [p]} for p in module.parameters()] if groups == 2 else module.parameters()
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=momentum)
        module.layer(torch.randn(2, 4)).sum().backward()
        optimizer.step()
        return module, optimizer

    own, optimizer = of()
    good = TrainState.of(own, optimizer, 1, {})
    wrong = good.training
    for bad, words in (
        (dataclasses.replace(good, training=wrong | {"buffer.other": torch.zeros(3)}), "the model has no other"),
        (dataclasses.replace(good, training=wrong | {"buffer.scale": torch.zeros(4)}), r"scale has shape \[4\]"),
        (
            dataclasses.replace(good, training={n: t for n, t in wrong.items() if n != "buffer.scale"}),
            "there is no scale",
        ),
        (dataclasses.replace(good, training=wrong | {"optimizer.2.mean": torch.zeros(3)}), r"place for optimizer\.2"),
        (dataclasses.replace(good, training=wrong | {"more": torch.zeros(3)}), "no place for more"),
        (dataclasses.replace(good, notes=good.notes | {"optimizer": {"7.calls": 1}}), r"place for optimizer\.7\.calls"),
        (dataclasses.replace(good, model=good.model | {"more": torch.zeros(3)}), "the model has no more"),
        (TrainState.of(*of(groups=2), 1, {}), r"parameters have shapes \[\[\[3, 4\]\], \[\[3\]\]\], those here"),
    ):
        module, optimizer = of()
        before = TrainState.of(module, optimizer, 1, {})
        with pytest.raises(StateMismatch, match=words):
            bad.put_into(module, optimizer)
        after = TrainState.of(module, optimizer, 1, {})
        assert_equal(after, before)


def test_a_state_that_is_put_back_is_aligned_and_has_the_dtypes_of_before() -> None:
    module = Buffered()
    optimizer = torch.optim.Adam(module.parameters())
    module.layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    for values in optimizer.state.values():
        values["exp_avg"] = values["exp_avg"].double()
        values["flags"] = torch.ones(3, dtype=torch.bool)
    state = TrainState.from_bytes(TrainState.of(module, optimizer, 1, {}).to_bytes())
    state.put_into(module, optimizer)
    assert_equal(TrainState.of(module, optimizer, 1, {}), state)
    for values in optimizer.state.values():
        assert (values["exp_avg"].dtype, values["flags"].dtype) == (torch.float64, torch.bool)
        assert all(tensor.data_ptr() % 64 == 0 for tensor in values.values())
