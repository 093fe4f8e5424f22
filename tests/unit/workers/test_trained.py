"""The model of a checkpoint says of raw inputs what the trained one said of prepared ones."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from torch import nn

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.datasets import build_data
from lockstep.workers.engine import Origin
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.trained import TrainedModel, load_model
from lockstep.workers.training import train

SIZE = 14


def write_idx(path: Path, values: np.ndarray) -> None:
    path.write_bytes(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four IDX files of random images."""
    drawn = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 12)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte", drawn.integers(0, 256, (count, SIZE, SIZE), np.uint8))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte", drawn.integers(0, 3, count, np.uint8))
    return tmp_path


@pytest.mark.parametrize("standardize", [False, True])
def test_images_as_bytes_are_prepared_as_they_were_for_training(images: Path, standardize: bool) -> None:
    spec = JobSpec(
        model={"lenet": {"activation": "relu", "pooling": "max"}},
        data={"idx": {"root": str(images), "standardize": standardize}},
        optimizer={"sgd": {"learning_rate": 0.1}},
        training={"max_steps": 4, "batch_size": 10, "log_every_steps": 1},
        resources={"shards": 2, "cpus_per_worker": 1.0},
    )
    as_json = json_format.MessageToDict(spec, preserving_proto_field_name=True)
    train(spec, origin=Origin(Checkpoints(str(images / "run"), spec=as_json), 100))
    model = load_model(images / "run" / "step-000000000004")
    data = build_data(spec.data)
    prepared, _ = data.take(data.validation, slice(0, 12))
    raw = data.validation.inputs.numpy()
    assert model.input_shape == (1, SIZE, SIZE)
    assert torch.allclose(model.prepare(raw), prepared, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(model(raw), model.module(prepared), atol=1e-5)
    assert np.array_equal(model.predict(raw[:, 0]), model.predict(raw))  # the channel of grey images may be left out


@pytest.mark.parametrize("preprocessing", [{"inputs": {"one_hot": 3}}, {"text": {"vocabulary": []}}])
def test_what_was_done_to_the_inputs_and_is_not_known_is_no_silent_difference(preprocessing: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="which this version does not know"):
        TrainedModel(nn.Linear(2, 1), (2,), None, preprocessing)


def test_predictions_are_numpy_where_numpy_was_given_and_torch_where_torch_was() -> None:
    model = TrainedModel(nn.Linear(2, 3), (2,), 3, {})
    raw = np.random.default_rng(0).normal(size=(5, 2))
    classes, tensor = model.predict(raw), model.predict(torch.as_tensor(raw))
    assert isinstance(classes, np.ndarray)
    assert classes.dtype == np.int64
    assert (classes == tensor.numpy()).mean() == 1.0
    assert isinstance(tensor, torch.Tensor)
    assert isinstance(model.predict(raw.tolist()), np.ndarray)
