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


def test_an_array_that_is_read_only_is_read_without_a_warning_and_not_written_to() -> None:
    model = TrainedModel(nn.Linear(2, 3), (2,), 3, {"inputs": {"divide_by": 2.0, "mean": [1.0], "std": [2.0]}})
    for dtype in (np.float64, np.float32, np.uint8, ">f8", np.bool_):
        written = np.random.default_rng(0).integers(0, 2, size=(5, 2)).astype(dtype)
        read_only = np.frombuffer(written.tobytes(), dtype).reshape(5, 2)
        assert not read_only.flags.writeable
        assert np.array_equal(model.predict(read_only), model.predict(written))
        assert read_only.tobytes() == written.tobytes()


@pytest.mark.parametrize(
    ("raw", "error", "words"),
    [
        ("abc", TypeError, "a str of dtype <U3"),
        (None, TypeError, "a NoneType of dtype object"),
        (np.array([[{}, 1]], object), TypeError, "a ndarray of dtype object"),
        ([["1", "2"]], TypeError, "a list of dtype <U1"),
        (np.zeros((2, 2), np.complex64), TypeError, "a ndarray of dtype complex64"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "a Tensor of dtype complex64"),
        ([[1.0, 2.0], [1.0]], ValueError, "rows of different lengths"),
        ([1.0, 2.0], ValueError, r"the shape \(2,\)"),
        (7, ValueError, r"the shape \(\)"),
    ],
    ids=str,
)
def test_what_are_no_examples_is_refused_in_words(raw: object, error: type[Exception], words: str) -> None:
    model = TrainedModel(nn.Linear(2, 3), (2,), 3, {})
    with pytest.raises(error, match=f"^inputs .*{words}.*; allowed: any number of examples, each 2"):
        model.predict(raw)
