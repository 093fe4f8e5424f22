"""A trained model, out of a checkpoint, ready for inputs as they come."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from google.protobuf import json_format
from torch import Tensor, nn

from lockstep.contract.checkpoints import MANIFEST_FILE, MODEL_FILE
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import DataModule
from lockstep.workers.engine.state import manifest as manifests
from lockstep.workers.engine.state.checkpoint import read_weights
from lockstep.workers.models import build_model

_KNOWN_STEPS = {"divide_by", "mean", "std"}


class TrainedModel(nn.Module):
    """A model in evaluation mode, with what was done to raw inputs before it saw them.

    Args:
        module: the model.
        input_shape: one example as the model sees it.
        num_classes: number of classes; None for regression.
        preprocessing: what was done to raw examples; see `DataModule.preprocessing`.

    Raises:
        ValueError: something was done to them that this version does not know.

    Attributes:
        module: the model itself, for inputs that are prepared; its state_dict is that of the checkpoint.
    """

    def __init__(
        self, module: nn.Module, input_shape: tuple[int, ...], num_classes: int | None, preprocessing: dict[str, Any]
    ) -> None:
        super().__init__()
        unknown = [
            f"{what}.{step}"
            for what, steps in preprocessing.items()
            for step in ([*steps] if what in ("inputs", "targets") else ["*"])
            if step not in _KNOWN_STEPS
        ]
        if unknown:  # without it the model would predict something else, and nobody would notice
            raise ValueError(
                f"its preprocessing has {', '.join(unknown)}, which this version does not know; upgrade it"
            )
        self.module = module
        self.input_shape, self.num_classes, self.preprocessing = input_shape, num_classes, preprocessing
        self.eval()

    def prepare(self, raw: Any) -> Tensor:
        """Do to raw inputs what was done to those that the model was trained on.

        Args:
            raw: an array or a tensor of n examples as the data set has them, such as pixels from 0 to 255, (n, ...);
                an example has as many numbers as the model takes.

        Returns:
            float32, (n, *input_shape).

        Raises:
            TypeError: it is not of numbers.
            ValueError: it is no such array.
        """
        numbers = torch.Size(self.input_shape).numel()
        wanted = f"allowed: any number of examples, each {' by '.join(map(str, self.input_shape))}"
        inputs = _numbers(raw, wanted)
        if inputs.ndim < 2 or inputs[:1].numel() != min(len(inputs), 1) * numbers:
            raise ValueError(f"inputs have the shape {tuple(inputs.shape)}; {wanted}; write [example] for a single one")
        steps = self.preprocessing.get("inputs", {})
        if "mean" in steps:
            inputs = (inputs - torch.tensor(steps["mean"]).double()) / torch.tensor(steps["std"]).double()
        inputs = inputs / steps.get("divide_by", 1.0)
        prepared: Tensor = inputs.to(torch.float32).reshape(len(inputs), *self.input_shape)
        return prepared

    def forward(self, raw: Any) -> Tensor:
        """Map raw inputs to what the model says: scores (n, classes), or numbers (n, 1) as it was trained on them."""
        outputs: Tensor = self.module(self.prepare(raw).to(next(self.module.parameters()).device))
        return outputs

    def predict(self, raw: Any) -> Any:
        """Predict from raw inputs.

        Args:
            raw: as `prepare` takes it.

        Returns:
            The number of the class of each, int64, (n,); or numbers in the units of the data, float32, (n, 1). A tensor
            where a tensor was given, else a NumPy array.
        """
        predicted = self._predicted(raw)
        return predicted if isinstance(raw, Tensor) else predicted.numpy(force=True)

    @torch.no_grad()
    def _predicted(self, raw: Any) -> Tensor:
        outputs: Tensor = self(raw)
        if self.num_classes is not None:
            return outputs.argmax(dim=1)
        steps = self.preprocessing.get("targets", {})
        outputs = outputs * steps.get("divide_by", 1.0)
        if "mean" in steps:
            outputs = outputs * torch.tensor(steps["std"]) + torch.tensor(steps["mean"])
        return outputs


def _numbers(raw: Any, wanted: str) -> Tensor:
    """An array, a tensor or nested lists as a tensor of float64, which shares no memory with an array.

    Args:
        raw: what a user has given.
        wanted: what it should have been, in words.

    Raises:
        TypeError: it is not of numbers.
        ValueError: its rows are of different lengths.
    """
    if isinstance(raw, Tensor) and not raw.is_complex():
        return raw.to(torch.float64)
    try:
        array = np.asarray(raw)
    except ValueError as error:
        raise ValueError(f"inputs are rows of different lengths; {wanted}") from error
    except TypeError as error:  # a list of tensors on a GPU, for instance
        raise TypeError(f"inputs are a {type(raw).__name__} that is no array: {error}; {wanted}") from error
    if array.dtype.kind not in "biuf":
        what = f"{type(raw).__name__} of dtype {array.dtype}"
        raise TypeError(f"inputs are a {what}, not an array, a tensor or lists of real numbers; {wanted}")
    return torch.from_numpy(array.astype(np.float64))


class _Described(DataModule):
    """Data of which only the form is known."""

    def __init__(self, input_shape: tuple[int, ...], num_classes: int | None) -> None:
        self._input_shape, self.num_classes = input_shape, num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._input_shape


def load_model(folder: str | os.PathLike[str]) -> TrainedModel:
    """Load the model of a checkpoint, such as `lockstep download` fetches.

    Args:
        folder: that of the checkpoint, with its manifest.

    Raises:
        ValueError: it was written by a version that did not write down which model it is of.
        Damaged: it is not what was written.
        OSError: it cannot be read.
    """
    path = Path(folder).absolute()
    manifest = manifests.decode((path / MANIFEST_FILE).read_bytes())
    if not manifest.get("spec") or not manifest.get("examples"):
        raise ValueError(
            f"the manifest in {path} does not say which model it is of: an earlier version wrote it; build the module "
            "yourself and load the weights into it (job.load_state_dict)"
        )
    spec = json_format.ParseDict(manifest["spec"], JobSpec(), ignore_unknown_fields=True)
    input_shape, num_classes = tuple(manifest["examples"]["input_shape"]), manifest["examples"]["num_classes"]
    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn, and thrown away
        module = build_model(spec.model, _Described(input_shape, num_classes), spec.training.seed)
    module.load_state_dict(read_weights(str(path), (path / MODEL_FILE).stat().st_size))
    return TrainedModel(module, input_shape, num_classes, manifest.get("preprocessing") or {})
