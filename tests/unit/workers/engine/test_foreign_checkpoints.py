"""What others put where a job keeps its checkpoints is neither used nor removed, and nothing waits for it."""

import json
import os
from pathlib import Path

import pytest
import torch

from lockstep.contract.checkpoints import MANIFEST_FILE, MODEL_FILE
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import DataError, Origin, Trainer
from lockstep.workers.engine.state.checkpoint import (
    Checkpoints,
    Damaged,
    NotOurs,
    read_weights,
)
from lockstep.workers.engine.state.state import TrainState
from lockstep.workers.models.linear import LinearRegression
from tests.unit.workers.engine.test_checkpoint import assert_equal, state
from tests.unit.workers.engine.test_writer import Notes, train

STEP = 1
FOLDER = f"step-{STEP:012}"


def of_job(root: Path, job_id: str, curve: str = "c", keep: int = 2) -> Checkpoints:
    return Checkpoints(str(root), keep, {"job_id": job_id, "curve_digest": curve})


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_job_folder_that_is_a_link_is_refused_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    of_job(tmp_path / "victim", "job-v").write(state(40))
    before = snapshot(tmp_path / "victim")
    (tmp_path / "job").symlink_to("victim")
    with pytest.raises(DataError, match=r"checkpoints: .*/job is a link; only a folder is taken"):
        train(Checkpoints(str(tmp_path / "job")), every_steps=5)
    intruder = Checkpoints(f"{tmp_path}/job/")
    for act in (intruder.take_over, intruder.kept, lambda: intruder.write(state(1)), lambda: intruder.prune(1)):
        with pytest.raises(NotOurs):
            act()
    assert snapshot(tmp_path / "victim") == before


@pytest.mark.parametrize("theirs", [("job-v", "c"), ("job-1", "other")], ids=["another job", "another curve"])
def test_checkpoints_of_others_are_told_of_passed_over_and_left(tmp_path: Path, theirs: tuple[str, str]) -> None:
    others = of_job(tmp_path, *theirs, keep=10)
    for step in (5, 40, 50):
        others.write(state(step))
    before = snapshot(tmp_path)
    notes = train(of_job(tmp_path, "job-1"), every_steps=5)
    assert [note.partition(": it was written by")[0] for note in notes[:3]] == [
        f"the checkpoint of step {step} cannot be used" for step in (50, 40, 5)
    ]
    assert "the checkpoint of step 5 could not be written" in notes[3], "it would take the place of theirs"
    assert len(notes) == 4
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [kept.step for kept in of_job(tmp_path, "job-1").kept()] == [20, 15]


def test_what_was_written_before_manifests_said_whose_they_are_is_used_as_ever(tmp_path: Path) -> None:
    Checkpoints(str(tmp_path)).write(state(STEP))
    assert_equal(of_job(tmp_path, "job-1").read(STEP), state(STEP))


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE])
def test_no_link_is_followed_below_the_jobs_folder(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(str(tmp_path / "job"))
    checkpoints.write(state(STEP))
    file = tmp_path / "job" / FOLDER / name
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        checkpoints.read(STEP)
    file.unlink()
    (tmp_path / "elsewhere").rename(file)
    assert_equal(checkpoints.read(STEP), state(STEP))
    (tmp_path / "job" / FOLDER).rename(tmp_path / "moved")
    (tmp_path / "job" / FOLDER).symlink_to(tmp_path / "moved")
    assert checkpoints.steps() == []
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        checkpoints.read(STEP)
    checkpoints.write(state(2))
    checkpoints.prune(2)
    assert (tmp_path / "moved" / MODEL_FILE).exists()


@pytest.mark.parametrize("name", [MANIFEST_FILE, MODEL_FILE])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(state(STEP))
    (tmp_path / FOLDER / name).unlink()
    os.mkfifo(tmp_path / FOLDER / name)
    with pytest.raises(OSError, match="is no regular file"):
        checkpoints.read(STEP)
    with pytest.raises(OSError, match="is no regular file"):
        read_weights(str(tmp_path / FOLDER), 10_000)


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    checkpoints = Checkpoints(str(tmp_path / "job"))
    checkpoints.write(state(STEP))
    os.chown(tmp_path / "job", 65534, 65534)
    with pytest.raises(NotOurs, match="belongs to the user with number 65534, and workers run as 0"):
        Checkpoints(str(tmp_path / "job")).steps()


def start_from(uri: str) -> list[str]:
    listener = Notes()
    data = SyntheticRegression((2.0, -3.4), 4.2, 0.01, train_size=100, validation_size=10, seed=0)
    data.load()
    Trainer(max_steps=2, batch_size=8).fit(
        LinearRegression(2),
        data,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        listener=listener,
        origin=Origin(None, 10, uri),
    )
    return listener.notes


def test_weights_to_start_from_take_no_more_memory_than_the_model(tmp_path: Path) -> None:
    train(Checkpoints(str(tmp_path)), every_steps=1000)
    folder = tmp_path / "step-000000000020"
    assert start_from(str(folder)) == []
    huge = TrainState(20, {"weight": torch.zeros(5 << 20)}, {}, {})
    Checkpoints(str(tmp_path / "huge")).write(huge)
    with pytest.raises(DataError, match=r"init_from_uri: .* 20,971,6\d\d bytes; the model takes at most 16,777,2\d\d"):
        start_from(f"file://{tmp_path}/huge/{folder.name}")
    (folder / MANIFEST_FILE).unlink()
    os.truncate(os.open(folder / MANIFEST_FILE, os.O_CREAT | os.O_WRONLY), 40 << 30)
    with pytest.raises(DataError, match="is longer than the 67,108,864 bytes that it may have"):
        start_from(str(folder))
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="symbolic links"):
        start_from(str(folder))


def test_two_colons_in_a_path_are_two_colons(tmp_path: Path) -> None:
    one, other = (Checkpoints(f"{tmp_path}/run::{number}/job") for number in (1, 2))
    one.write(state(1))
    other.write(state(2))
    assert (one.steps(), other.steps()) == ([1], [2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run::1", "run::2"]
    assert one.kept()[0].uri == f"file://{tmp_path}/run::1/job/{FOLDER}"
    assert read_weights(one.kept()[0].uri, 10_000).keys() == state(1).model.keys()
    with pytest.raises(ValueError, match='holds "::", which chains file systems'):
        Checkpoints("memory://a::memory://b")


def test_the_manifest_says_which_spec_and_which_preprocessing_the_model_is_of(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), spec={"name": "n"})
    checkpoints.preprocessing = {"inputs": {"divide_by": 16.0}}
    checkpoints.write(state(STEP))
    manifest = json.loads((tmp_path / FOLDER / MANIFEST_FILE).read_text())
    assert manifest["spec"] == {"name": "n"}
    assert manifest["preprocessing"] == {"inputs": {"divide_by": 16.0}}


def test_the_digest_of_the_manifest_is_told_as_it_was_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.write(state(STEP))
    (written,) = checkpoints.kept()
    (read,) = Checkpoints(str(tmp_path)).kept()
    assert written == read
    assert written.files[-1].name == MANIFEST_FILE
    manifest = tmp_path / FOLDER / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes() + b" ")
    assert checkpoints.kept() == [written], "what was written is told, not what lies there now"


def test_a_damaged_manifest_of_a_job_makes_room_for_what_is_whole(tmp_path: Path) -> None:
    checkpoints = of_job(tmp_path, "job-1")
    checkpoints.write(state(40))
    path = tmp_path / "step-000000000040" / MANIFEST_FILE
    path.write_bytes(b"")
    again = of_job(tmp_path, "job-1")
    again.take_over()
    with pytest.raises(Damaged):
        again.read(40)
    again.write(state(20))
    again.prune(20)
    assert again.steps() == [20]
