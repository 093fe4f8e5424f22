from __future__ import annotations

import pytest
from google.protobuf import json_format

from lockstep.server.spec.validation import fill_in_defaults, resolve
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.specs import DIGITS, LENET, SITE, SYNTHETIC, spec_of

ADAMW = DIGITS | {"optimizer": {"adamw": {}}}
BASES = {"digits": DIGITS, "adamw": ADAMW, "lenet": LENET, "synthetic": SYNTHETIC}


def test_defaults_are_filled_in_as_the_contract_says() -> None:
    spec = resolve(spec_of(DIGITS), SITE)
    assert json_format.MessageToDict(spec, preserving_proto_field_name=True) == {
        "name": "mlp",
        "model": {"mlp": {"hidden_units": [256], "activation": "relu"}},
        "data": {"builtin": {"name": "digits", "validation_fraction": 0.2, "seed": 0}},
        "optimizer": {"sgd": {"learning_rate": 0.1, "momentum": 0.0, "weight_decay": 0.0}},
        "training": {
            "max_epochs": 10,
            "batch_size": 32,
            "seed": 0,
            "log_every_steps": 50,
            "audit": "start",
            "precision": "fp32",
            "memory_format": "contiguous",
        },
        "resources": {
            "workers": 1,
            "shards": 4,
            "cpus_per_worker": 1.0,
            "gpus_per_worker": 0,
            "min_workers": 1,
            "gpu_share": 1.0,
        },
        "recovery": {
            "max_restarts": 3,
            "checkpoint_every_steps": 1000,
            "keep_checkpoints": 2,
            "hang_timeout_s": 30.0,
        },
    }


def test_a_resolved_spec_resolves_to_itself() -> None:
    for base in BASES.values():
        spec = resolve(spec_of(base), SITE)
        assert resolve(spec, SITE) == spec


def test_a_spec_of_an_earlier_version_gets_the_fields_that_are_new_and_keeps_the_others() -> None:
    spec = resolve(spec_of(DIGITS, training__max_steps=7), SITE)
    old = JobSpec()
    old.CopyFrom(spec)
    old.resources.ClearField("min_workers")
    for name in ("checkpoint_every_steps", "keep_checkpoints", "hang_timeout_s"):
        old.recovery.ClearField(name)
    before = old.SerializeToString(deterministic=True)
    assert fill_in_defaults(old) == spec
    assert old.SerializeToString(deterministic=True) == before
    assert not fill_in_defaults(spec).training.HasField("max_epochs")
    assert not fill_in_defaults(spec).HasField("init_from")


@pytest.mark.parametrize(
    ("workers", "batch_size", "shards"),
    [(1, 32, 4), (4, 32, 4), (3, 32, 4), (5, 32, 8), (8, 32, 8), (9, 32, 16), (1, 2, 2), (3, 3, 3), (1000, 1024, 1024)],
)
def test_shards_follow_from_workers_and_never_exceed_the_batch(workers: int, batch_size: int, shards: int) -> None:
    spec = resolve(spec_of(DIGITS, resources__workers=workers, training__batch_size=batch_size), SITE)
    assert spec.resources.shards == shards


@pytest.mark.parametrize(("workers", "batch_size", "shards"), [(1, 64, 1), (3, 64, 3), (8, 64, 8)])
def test_on_gpus_there_are_as_many_shards_as_workers(workers: int, batch_size: int, shards: int) -> None:
    wanted = spec_of(DIGITS, resources__workers=workers, resources__gpus_per_worker=1, training__batch_size=batch_size)
    spec = resolve(wanted, SITE)
    assert spec.resources.shards == shards


def test_steps_take_the_place_of_the_default_epochs() -> None:
    spec = resolve(spec_of(DIGITS, training__max_steps=7), SITE)
    assert not spec.training.HasField("max_epochs")
