"""Trained models, where torch and the workers' part are installed.

How a model is built is known to the workers' part. It offers that by an entry point of the group `lockstep.models`, a
function that takes the folder of a checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lockstep.client._entry_points import load_part
from lockstep.client.checkpoints import fetch
from lockstep.client.errors import LockstepError
from lockstep.contract.checkpoints import MANIFEST_FILE, MODEL_FILE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lockstep.client.client import Client

GROUP = "lockstep.models"


class TrainedModel(Protocol):
    """A trained torch module that takes inputs as the data set has them, such as pixels from 0 to 255.

    Attributes:
        module: the model itself, for inputs that are prepared already; its state_dict is that of the checkpoint.
    """

    module: nn.Module

    def __call__(self, raw: Any) -> Tensor:
        """Map raw inputs (n, ...), an array or a tensor, to scores (n, classes) or numbers (n, 1)."""

    def prepare(self, raw: Any) -> Tensor:
        """Do to raw inputs what was done to those that the model was trained on."""

    def predict(self, raw: Any) -> Tensor:
        """Map raw inputs to the numbers of their classes, int64, (n,), or to numbers in the units of the data."""


def load_model(client: Client, job_id: str, step: int | None) -> TrainedModel:
    """Fetch and build the model of a checkpoint; see Job.load_model."""
    load = load_part(GROUP, "load", "load_model", "workers")
    with tempfile.TemporaryDirectory(prefix="lockstep-") as directory:
        fetch(client, job_id, step, (MODEL_FILE, MANIFEST_FILE), Path(directory))
        try:
            model: TrainedModel = load(directory)
        except Exception as error:  # those of the other part, which are not known by name here
            raise LockstepError(f"no model can be made of the checkpoint of {job_id}: {error}") from error
    return model
