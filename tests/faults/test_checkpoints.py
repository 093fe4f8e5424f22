"""Checkpoints: whoever dies while writing, whatever is damaged, training goes on from the newest good one, exactly."""

import json
import resource
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from google.protobuf import json_format

from lockstep.contract.checkpoints import MANIFEST_FILE, MODEL_FILE
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Activity, Origin, Point, Wish
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.training import train
from tests.faults.test_healing import SPEC, STEPS, assert_undisturbed, train_and_tell
from tests.support.process_fleet import Context, Fault, Fleet


def train_with_checkpoints(
    context: Context,
    spec: dict[str, Any],
    folder: str,
    stop_after: int | None = None,
    file_size: int | None = None,
    every_steps: int = 2,
) -> tuple[str, list[Point]]:
    listener = context.listener
    if stop_after is not None:
        listener.wish = lambda: Wish.KEEP_AND_STOP if listener.step >= stop_after else Wish.GO_ON  # type: ignore[method-assign]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, before[1]))
    try:
        result = train(
            json_format.ParseDict(spec, JobSpec()),
            context.group,
            listener,
            regroup=context.membership.next_group,
            origin=Origin(Checkpoints(folder, keep=3), every_steps=every_steps),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return result.weights_digest, listener.points


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet) -> tuple[str, list[Point]]:
    (outcome,) = fleet.run(1, train_and_tell, SPEC)
    return outcome


def steps_in(folder: Path) -> list[int]:
    return Checkpoints(str(folder)).steps()


@pytest.mark.parametrize("world_sizes", [(1, 2), (3, 1), (2, 4)])
def test_a_run_that_stopped_goes_on_exactly_on_any_number_of_workers(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path, world_sizes: tuple[int, int]
) -> None:
    before, after = world_sizes
    ends = fleet.run(before, train_with_checkpoints, SPEC, str(tmp_path), 5)
    assert ends == ["Stopped: stopped after step 5"] * before
    assert steps_in(tmp_path) == [5, 4, 2]
    assert_undisturbed(fleet.run(after, train_with_checkpoints, SPEC, str(tmp_path)), undisturbed, after)
    assert steps_in(tmp_path) == [12, 10, 8]
    assert ("noted", "going on from the checkpoint of step 5") in fleet.messages


@pytest.mark.parametrize(
    "place", [(Activity.CHECKPOINT, 4), (Activity.CHECKPOINT, STEPS), (Activity.FINISH, STEPS)], ids=str
)
def test_a_death_while_a_checkpoint_is_written_leaves_the_curve_as_it_was(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path, place: tuple[Any, int]
) -> None:
    outcomes = fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path), faults=[Fault(0, *place)])
    assert_undisturbed(outcomes, undisturbed, 1)
    assert steps_in(tmp_path)[0] == STEPS
    assert not list(tmp_path.glob("unfinished-*"))


def test_a_rank_that_takes_over_tells_of_all_checkpoints_that_there_are(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path
) -> None:
    fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path), 5, None, 5)
    faults = [Fault(0, Activity.COMPUTE, 8)]
    outcomes = fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path), None, None, 5, faults=faults)
    assert_undisturbed(outcomes, undisturbed, 1)
    told = [value for kind, value in fleet.messages if kind == "kept"]
    last = told[-1][0]
    assert [steps for process, steps in told if process == last] == [[5], [10, 5], [12, 10, 5]]


def test_when_all_are_gone_the_newest_checkpoint_is_where_it_goes_on(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path
) -> None:
    everyone = [Fault(number, Activity.COMPUTE, 8) for number in range(2)]
    assert fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path), faults=everyone) == []
    assert steps_in(tmp_path)[0] in (4, 6), "the last one was perhaps still being written"
    assert_undisturbed(fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path)), undisturbed, 2)


def truncate(folder: Path) -> str:
    data = (folder / MODEL_FILE).read_bytes()
    (folder / MODEL_FILE).write_bytes(data[:-7])
    return f"model.safetensors has {len(data) - 7} bytes, not {len(data)}"


def flip_a_bit(folder: Path) -> str:
    data = bytearray((folder / MODEL_FILE).read_bytes())
    data[-3] ^= 4
    (folder / MODEL_FILE).write_bytes(data)
    return "the bytes of model.safetensors have changed"


def lose_a_file(folder: Path) -> str:
    (folder / "training.safetensors").unlink()
    return "training.safetensors is missing"


def garble_the_manifest(folder: Path) -> str:
    (folder / MANIFEST_FILE).write_text("{}")
    return "manifest.json cannot be understood"


def change_a_shape(folder: Path) -> str:
    """Put another model's weights there, as whole as can be."""
    checkpoints = Checkpoints(str(folder.parent), keep=3)
    state = checkpoints.read(5)
    state.model["net.1.bias"] = state.model["net.1.bias"][:-1].clone()
    checkpoints.write(state)
    return "net.1.bias has shape [23], the model wants [24]"


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_file, garble_the_manifest, change_a_shape])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path, damage: Any
) -> None:
    fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path), 5)
    words = damage(tmp_path / "step-000000000005")
    assert_undisturbed(fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path)), undisturbed, 2)
    notes = [note for kind, note in fleet.messages if kind == "noted"]
    assert notes == [
        f"the checkpoint of step 5 cannot be used: {words}",
        "going on from the checkpoint of step 4",
    ]


def test_without_any_good_checkpoint_it_starts_from_the_beginning(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path
) -> None:
    fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path), 5)
    for folder in tmp_path.glob("step-*"):
        flip_a_bit(folder)
    assert_undisturbed(fleet.run(2, train_with_checkpoints, SPEC, str(tmp_path)), undisturbed, 2)


def test_a_disk_that_takes_no_more_fails_nothing_and_loses_nothing(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path
) -> None:
    fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path), 5)
    outcomes = fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path), None, 1000)
    assert_undisturbed(outcomes, undisturbed, 1)
    assert steps_in(tmp_path) == [5, 4, 2]
    assert not list(tmp_path.glob("unfinished-*"))
    notes = [note for kind, note in fleet.messages if kind == "noted"]
    assert len(notes) == 1 + 4, "steps 6, 8, 10 and 12"
    assert all("could not be written" in note and "File too large" in note for note in notes[1:]), notes


def test_a_folder_that_cannot_be_made_fails_nothing(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    outcomes = fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path / "file" / "checkpoints"))
    assert_undisturbed(outcomes, undisturbed, 1)
    assert any("Not a directory" in note for kind, note in fleet.messages if kind == "noted")


def test_a_checkpoint_says_what_it_is(fleet: Fleet, tmp_path: Path) -> None:
    (outcome,) = fleet.run(1, train_with_checkpoints, SPEC, str(tmp_path))
    manifest = json.loads((tmp_path / f"step-{STEPS:012d}" / MANIFEST_FILE).read_text())
    assert manifest["step"] == STEPS
    assert manifest["weights_digest"] == outcome[0]
    assert sorted(file["name"] for file in manifest["files"]) == ["model.safetensors", "training.safetensors"]


def train_with_a_pause_on_a_full_disk(context: Context, folder: str, order: int, has_it: int) -> Any:
    """Train, and have one rank be told to stop with a checkpoint, which cannot be written."""
    listener, orders, refused = context.listener, [order] if context.group.rank == has_it else [], []

    def refuse(number: int, why: str) -> None:
        orders.clear()
        refused.append((number, why))

    with mock.patch.multiple(
        listener,
        wish=lambda: Wish.KEEP_AND_STOP if orders and listener.step >= 5 else Wish.GO_ON,
        refusable=lambda: sum(orders),
        refuse_stop=refuse,
    ):
        return train_with_checkpoints(context, SPEC, folder, file_size=1000, every_steps=1000), refused


@pytest.mark.parametrize("has_it", [0, 1])
def test_training_goes_on_exactly_when_it_cannot_be_kept_and_the_stop_may_be_refused(
    fleet: Fleet, undisturbed: tuple[str, list[Point]], tmp_path: Path, has_it: int
) -> None:
    ends = fleet.run(2, train_with_a_pause_on_a_full_disk, str(tmp_path), 3, has_it)
    assert_undisturbed([outcome for outcome, _ in ends], undisturbed, 2)
    assert [[number for number, _ in refused] for _, refused in ends] == [[3], [3]]
    (_, told), (_, not_told) = ends[0][1][0], ends[1][1][0]
    assert "could not be written" in told
    assert "File too large" in told
    assert not_told == "", "rank 0 tells it for all"


def test_a_stop_that_may_not_be_refused_is_followed_although_nothing_can_be_kept(fleet: Fleet, tmp_path: Path) -> None:
    ends = fleet.run(2, train_with_a_pause_on_a_full_disk, str(tmp_path), 0, 1)
    assert len(ends) == 2
    assert all(str(end).startswith("Stopped: ") for end in ends), ends
