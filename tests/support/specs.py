"""Small specs that are right, and how tests change them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from lockstep.contract.spec.traversal import parent_of
from lockstep.server.errors import InvalidSpec, Violation
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import resolve
from lockstep.v1.job_spec_pb2 import JobSpec

SITE = Site(Path("/srv"), shares_files_with_workers=False)

SYNTHETIC: dict[str, Any] = {
    "model": {"linear_regression": {}},
    "data": {"synthetic_regression": {"w": [2.0, -3.4]}},
    "optimizer": {"sgd": {"learning_rate": 0.03}},
}
DIGITS: dict[str, Any] = {
    "model": {"mlp": {}},
    "data": {"builtin": {"name": "digits"}},
    "optimizer": {"sgd": {"learning_rate": 0.1}},
}
LENET: dict[str, Any] = DIGITS | {"model": {"lenet": {}}, "data": {"idx": {"root": "mnist"}}}


def spec_of(base: dict[str, Any], **changes: Any) -> JobSpec:
    """Make a spec; a change is named by its path with "__" for "."."""
    spec = json_format.ParseDict(base, JobSpec())
    for name, value in changes.items():
        path = name.replace("__", ".")
        parent, leaf = parent_of(spec, path), path.rpartition(".")[2]
        if isinstance(value, dict) and leaf == "labels":
            spec.labels.update(value)
        elif isinstance(value, dict):
            message = getattr(parent, leaf)
            message.Clear()
            message.SetInParent()
            json_format.ParseDict(value, message)
        elif isinstance(value, list):
            parent.ClearField(leaf)  # type: ignore[union-attr]
            getattr(parent, leaf).extend(value)
        else:
            setattr(parent, leaf, value)
    return spec


def violations_of(spec: JobSpec, site: Site = SITE) -> tuple[Violation, ...]:
    with pytest.raises(InvalidSpec) as caught:
        resolve(spec, site)
    return caught.value.violations
