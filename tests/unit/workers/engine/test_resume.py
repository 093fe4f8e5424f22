"""Training that goes on from a checkpoint says so when the bits of that depended on something else."""

import json
from pathlib import Path

import pytest
import torch

from lockstep.contract.checkpoints import MANIFEST_FILE
from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.actor.assignment import checkpoints_of
from lockstep.workers.actor.failures import job_error
from lockstep.workers.datasets.synthetic import SyntheticRegression
from lockstep.workers.engine import ENGINE_VERSION, DataError
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.manifest import decode, encode
from tests.unit.workers.engine.test_writer import train

STEPS = 20
GOING_ON = f"going on from the checkpoint of step {STEPS}"
UNSURE = "its bits could differ from those of an undisturbed run"
HERE = hardware_class(torch.device("cpu"))


def notes_of_resuming(root: Path, facts: dict[str, str]) -> list[str]:
    """What is said by a worker that goes on from a checkpoint with these facts."""
    assert train(Checkpoints(str(root), facts=facts), every_steps=1000) == []
    order = StartGang(checkpoint_uri=str(root), job_id="job-1")
    order.spec.recovery.keep_checkpoints = 2
    return train(checkpoints_of(order), every_steps=1000)


def test_a_checkpoint_of_the_same_kind_needs_no_words(tmp_path: Path) -> None:
    same = {"hardware_class": HERE, "engine_version": ENGINE_VERSION, "job_id": "job-1"}
    assert notes_of_resuming(tmp_path, same) == [GOING_ON]
    manifest = json.loads((tmp_path / f"step-{STEPS:012}" / MANIFEST_FILE).read_text())
    digest = manifest["facts"].pop("data_digest")
    assert len(digest) == 64
    assert manifest["facts"] == same


def test_a_checkpoint_that_says_nothing_of_its_kind_needs_no_words(tmp_path: Path) -> None:
    assert notes_of_resuming(tmp_path, {"job_id": "job-1"}) == [GOING_ON]


def test_another_hardware_class_and_another_engine_are_told(tmp_path: Path) -> None:
    assert notes_of_resuming(tmp_path, {"hardware_class": "cpu AVX1024, torch 9.0", "engine_version": "1"}) == [
        GOING_ON,
        f"the checkpoint of step {STEPS} was written with cpu AVX1024, torch 9.0, and training goes on with {HERE}: "
        f"{UNSURE}",
        f"the checkpoint of step {STEPS} was written with engine version 1, and training goes on with engine version "
        f"{ENGINE_VERSION}: {UNSURE}",
    ]


def test_checkpoints_that_cannot_be_looked_at_are_told_and_training_starts_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[int]:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    checkpoints = Checkpoints(str(tmp_path))
    monkeypatch.setattr(checkpoints, "steps", refuse)
    notes = train(checkpoints, every_steps=1000)
    assert "Permission denied" in notes[0]
    assert notes[0].startswith("training starts from the beginning: its checkpoints cannot be looked at: ")


OTHER = "0123" * 16


def forge_data(root: Path, digest: str | None, **facts: str) -> None:
    """Train, and have the checkpoint say that it was of other data, or nothing of its data."""
    train(Checkpoints(str(root), facts={"hardware_class": HERE} | facts), every_steps=1000)
    path = root / f"step-{STEPS:012}" / MANIFEST_FILE
    manifest = decode(path.read_bytes())
    del manifest["facts"]["data_digest"]
    manifest["facts"] |= {} if digest is None else {"data_digest": digest}
    path.write_bytes(encode(manifest))


def test_training_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    forge_data(tmp_path, OTHER)
    with pytest.raises(DataError, match=f"checkpoint of step {STEPS} .* was {OTHER}; restore the files") as caught:
        train(Checkpoints(str(tmp_path)), every_steps=1000)
    assert caught.value.field == "data.synthetic_regression"
    error = job_error(caught.value, 0)
    assert (error.reason, error.field) == ("DATA_INVALID", "data.synthetic_regression")
    assert "or submit a new job with init_from" in error.message


def test_a_checkpoint_that_says_nothing_of_its_data_is_used_as_ever(tmp_path: Path) -> None:
    forge_data(tmp_path, None)
    assert train(Checkpoints(str(tmp_path)), every_steps=1000) == [GOING_ON]


def test_data_that_other_hardware_computes_otherwise_is_told_with_the_hardware(tmp_path: Path) -> None:
    forge_data(tmp_path, OTHER, hardware_class="cpu AVX1024, torch 9.0")
    notes = train(Checkpoints(str(tmp_path), facts={"hardware_class": HERE}), every_steps=1000)
    assert notes[0] == GOING_ON
    assert notes[-1].startswith(f"the checkpoint of step {STEPS} was written with data of the SHA-256 {OTHER}")


def test_data_from_files_must_be_the_same_on_other_hardware_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge_data(tmp_path, OTHER, hardware_class="cpu AVX1024, torch 9.0")
    monkeypatch.setattr(SyntheticRegression, "files", lambda data: [tmp_path])
    with pytest.raises(DataError, match="restore the files"):
        train(Checkpoints(str(tmp_path)), every_steps=1000)
