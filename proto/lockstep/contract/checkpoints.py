"""What the files of a checkpoint are called, on disk and in downloads, and what its manifest says."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

MODEL_FILE = "model.safetensors"
"""The weights, under the names of the model's state_dict."""
TRAINING_FILE = "training.safetensors"
"""Optimizer and what else training needs."""
MANIFEST_FILE = "manifest.json"
"""What the others are; written last, so that a folder with it is whole."""


class ManifestFile(TypedDict):
    """A file of a checkpoint, as its manifest has it."""

    name: str
    size_bytes: int
    sha256: str


class Manifest(TypedDict):
    """What a manifest says.

    Attributes:
        step: steps that were taken.
        create_time: seconds since 1970.
        weights_digest: SHA-256 of the weights, in hex.
        files: the other files.
        notes: what training needs that is no tensor.
        format: of the manifest; whoever writes one leaves it out.
        facts: whose the checkpoint is, and on what its bits depend; earlier versions left some or all out.
        spec: the resolved spec, as JSON has it; earlier versions left it out, as they did the next two.
        examples: what examples look like to the model.
        preprocessing: what was done to raw examples.
    """

    step: int
    create_time: float
    weights_digest: str
    files: list[ManifestFile]
    notes: dict[str, Any]
    format: NotRequired[int]
    facts: NotRequired[dict[str, Any]]
    spec: NotRequired[dict[str, Any]]
    examples: NotRequired[dict[str, Any]]
    preprocessing: NotRequired[dict[str, Any]]


LOCAL_SCHEMES = ("file://", "local://")
"""URIs that name a path of the machine."""


def folder_of(step: int) -> str:
    """The name of the folder of a checkpoint; names sort as steps do."""
    return f"step-{step:012d}"
