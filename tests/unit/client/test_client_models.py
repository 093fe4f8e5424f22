"""A trained model is loaded and predicts from inputs as the data set has them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from sklearn import datasets

from lockstep.client import Client, LockstepError, MissingPackage, _entry_points
from lockstep.client.job import Job
from lockstep.contract.checkpoints import MANIFEST_FILE
from lockstep.server.spec.offline import resolve_here
from lockstep.v1.checkpoint_service_pb2 import DownloadCheckpointRequest
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Origin
from lockstep.workers.engine.listener import Result
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.engine.state.manifest import decode, encode
from lockstep.workers.training import train
from tests.support.scripted_server import ScriptedServer, a_checkpoint, a_download, a_job


def trained(root: Path, data: str, model: str, steps: int, learning_rate: float = 0.1) -> tuple[Result, Path]:
    """Train on a built-in data set; what came out, and the folder of the checkpoint."""
    spec, violations = resolve_here(
        JobSpec(
            model={model: {}},
            data={"builtin": {"name": data, "seed": 3}},
            optimizer={"sgd": {"learning_rate": learning_rate}},
            training={"max_steps": steps, "batch_size": 64},
        )
    )
    assert violations == []
    as_json = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    result = train(spec, origin=Origin(Checkpoints(str(root), spec=as_json), 10_000))
    return result, root / f"step-{steps:012d}"


def held_out(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The validation part of a built-in data set, as it was before anything was done to it."""
    order = np.random.Generator(np.random.PCG64(3)).permutation(len(inputs))[: round(len(inputs) * 0.2)]
    return inputs[order], targets[order]


@pytest.fixture
def job(server: ScriptedServer, client: Client) -> Job:
    server.on("GetJob", a_job("SUCCEEDED"))
    return client.get_job("j-1")


def serve(server: ScriptedServer, folder: Path, step: int) -> None:
    def answer(request: DownloadCheckpointRequest) -> list[Any]:
        content = (folder / request.file_name).read_bytes()
        return a_download(request.file_name, content, a_checkpoint(step), chunk_bytes=100_000)

    server.on("DownloadCheckpoint", answer)


def test_a_model_predicts_raw_images_as_well_as_its_job_did(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    result, folder = trained(tmp_path, "digits", "mlp", steps=300)
    serve(server, folder, 300)
    model = job.load_model()
    digits = datasets.load_digits()
    images, labels = held_out(digits.images, digits.target)
    predicted: Any = model.predict(images)
    assert predicted.dtype == np.int64
    assert (predicted == labels).mean() == pytest.approx(result.final_metrics["val_accuracy"], abs=1e-9)
    assert result.final_metrics["val_accuracy"] > 0.9
    assert not model.module.training
    assert model(images).shape == (len(images), 10)
    # Flat as scikit-learn's table has them, and as tensors, they are the same images.
    assert np.array_equal(model.predict(torch.from_numpy(images.reshape(-1, 64))).numpy(), predicted)


def test_only_the_weights_and_the_manifest_are_fetched(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "iris", "softmax_regression", steps=5)
    serve(server, folder, 5)
    job.load_model(step=5)
    asked = [(request.file_name, request.step) for request in server.requests["DownloadCheckpoint"]]
    assert asked == [("model.safetensors", 5), ("manifest.json", 5)]


def test_a_table_is_standardised_and_numbers_come_in_the_units_of_the_data(
    server: ScriptedServer, job: Job, tmp_path: Path
) -> None:
    result, folder = trained(tmp_path, "diabetes", "linear_regression", steps=400, learning_rate=0.05)
    serve(server, folder, 400)
    model = job.load_model()
    patients = datasets.load_diabetes()
    rows, targets = held_out(patients.data, patients.target)
    errors = model.predict(rows)[:, 0] - targets
    deviation = np.delete(patients.target, np.random.Generator(np.random.PCG64(3)).permutation(442)[:88]).std()
    # The loss is half the squared error, of targets in units of their deviation.
    assert ((errors / deviation) ** 2 / 2).mean() == pytest.approx(result.final_metrics["val_loss"], rel=1e-4)
    assert errors.std() < targets.std()


def test_loading_a_model_leaves_the_random_numbers_of_its_caller_alone(
    server: ScriptedServer, job: Job, tmp_path: Path
) -> None:
    _, folder = trained(tmp_path, "iris", "mlp", steps=5)
    serve(server, folder, 5)
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    job.load_model()
    assert torch.equal(torch.rand(3), wanted)


def test_inputs_of_another_shape_are_refused_with_both_shapes(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "iris", "mlp", steps=5)
    serve(server, folder, 5)
    model = job.load_model()
    for wrong in (np.zeros((3, 5)), np.zeros(4)):
        with pytest.raises(ValueError, match=r"have the shape \(.*allowed: any number of examples, each 4; write"):
            model.predict(wrong)
    assert model.predict(np.zeros((0, 4))).shape == (0,)


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_told(server: ScriptedServer, job: Job, tmp_path: Path) -> None:
    _, folder = trained(tmp_path, "iris", "mlp", steps=5)
    manifest = decode((folder / MANIFEST_FILE).read_bytes())
    (folder / MANIFEST_FILE).write_bytes(encode(manifest | {"spec": {}}))
    serve(server, folder, 5)
    with pytest.raises(LockstepError, match=r"of j-1: .*an earlier version wrote it; build the module yourself"):
        job.load_model()


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ([], "load_model needs a part of Lockstep that is not installed: pip install "),
        (
            [EntryPoint("load", "a_part_that_is_not_there:load", "lockstep.models")],
            r"load_model needs the Python module a_part_that_is_not_there, which is not installed: "
            r"pip install '\.\[workers\]' in a checkout of Lockstep$",
        ),
    ],
)
def test_without_the_workers_part_it_is_said_what_to_install(
    job: Job, monkeypatch: pytest.MonkeyPatch, found: list[EntryPoint], words: str
) -> None:
    monkeypatch.setattr(_entry_points, "entry_points", lambda group: found)
    with pytest.raises(MissingPackage, match=words):
        job.load_model()
