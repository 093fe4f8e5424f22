"""Every kind of the contract is registered by its own file, and what is not is an error that says so."""

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from lockstep.v1.job_spec_pb2 import DataSpec, IdxData, ModelSpec, OptimizerSpec
from lockstep.workers import datasets, models, optimizers
from lockstep.workers.registry import Registry


@pytest.mark.parametrize(
    ("registry", "section"),
    [(models.builds, ModelSpec), (datasets.builds, DataSpec), (optimizers.builds, OptimizerSpec)],
)
def test_the_kinds_that_are_registered_are_those_of_the_contract(
    registry: Registry[Any], section: type[Message]
) -> None:
    assert registry.kinds == {field.name for field in section.DESCRIPTOR.oneofs_by_name["kind"].fields}


def test_a_kind_that_nobody_has_registered_is_an_error_that_names_it() -> None:
    builds: Registry[Callable[[Any], str]] = Registry("model")
    builds("mlp")(str)
    with pytest.raises(ValueError, match=r"no builder for model\.lenet; they know mlp; "):
        builds.builder_of(ModelSpec(lenet={}))


def test_a_kind_of_a_newer_contract_is_not_taken_for_another() -> None:
    newer = ModelSpec.FromString(b"\xfa\x3e\x00")  # field 1007, an empty message
    with pytest.raises(ValueError, match="no model that these workers know"):
        models.builds.builder_of(newer)


def test_no_kind_has_two_builders() -> None:
    builds: Registry[Callable[[Any], str]] = Registry("model")
    builds("mlp")(str)
    with pytest.raises(ValueError, match=r"model\.mlp has two builders"):
        builds("mlp")(repr)


def test_data_has_one_name_wherever_its_files_lie() -> None:
    here, there = (DataSpec(idx=IdxData(root=root, standardize=True)) for root in ("/here", "/there"))
    other = DataSpec(idx=IdxData(root="/here"))
    assert datasets.builds.name_of(here) == datasets.builds.name_of(there) != datasets.builds.name_of(other)
    assert here.idx.root == "/here"
