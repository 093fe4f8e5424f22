"""What the files of a checkpoint are called, on disk and in downloads."""

from __future__ import annotations

MODEL_FILE = "model.safetensors"
"""The weights, under the names of the model's state_dict."""
TRAINING_FILE = "training.safetensors"
"""Optimizer and what else training needs."""
MANIFEST_FILE = "manifest.json"
"""What the others are; written last, so that a folder with it is whole."""

LOCAL_SCHEMES = ("file://", "local://")
"""URIs that name a path of the machine."""


def folder_of(step: int) -> str:
    """The name of the folder of a checkpoint; names sort as steps do."""
    return f"step-{step:012d}"
