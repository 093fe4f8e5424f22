"""What the engine says of its parameters reaches users in the words of their spec."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.actor.failures import job_error
from lockstep.workers.engine import DataError, ModelError, NonFiniteLoss, Origin
from lockstep.workers.engine.audit.layers import ELSEWHERE
from lockstep.workers.engine.state.checkpoint import Checkpoints
from lockstep.workers.training import SMALLEST, fields_of, train


def spec_of(**training: Any) -> JobSpec:
    smallest: dict[str, Any] = SMALLEST
    return json_format.ParseDict(smallest | {"training": smallest["training"] | training}, JobSpec())


def test_a_batch_that_is_too_large_blames_the_field_of_the_spec() -> None:
    with pytest.raises(DataError) as caught:
        train(spec_of(batch_size=3))
    error = job_error(caught.value, 0)
    assert error.field == "training.batch_size"
    assert error.message == "training.batch_size: 3 is more than the 2 training examples; allowed: 1 to 2"


def test_a_loss_that_leaves_the_numbers_names_the_fields_that_tame_it() -> None:
    spec = spec_of(max_steps=50)
    spec.optimizer.sgd.learning_rate = 1e30
    spec.data.synthetic_regression.noise = 1.0
    with pytest.raises(NonFiniteLoss) as caught:
        train(spec)
    assert str(caught.value).endswith("Try a lower optimizer.sgd.learning_rate or set training.gradient_clip_norm.")


def test_weights_that_cannot_be_read_blame_init_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^init_from: the weights in .* cannot be used") as caught:
        train(spec_of(), origin=Origin(None, 1, str(tmp_path / "gone")))
    assert caught.value.field == "init_from"


def test_a_folder_that_is_a_link_blames_the_uri_of_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "job").symlink_to("elsewhere")
    with pytest.raises(DataError, match=r"^recovery\.checkpoint_uri: .*/job is a link") as caught:
        train(spec_of(), origin=Origin(Checkpoints(str(tmp_path / "job")), 1))
    assert caught.value.field == "recovery.checkpoint_uri"


def test_a_hint_to_compute_elsewhere_names_the_field_that_says_where() -> None:
    error = ModelError("no kernel; ", *ELSEWHERE)
    assert str(error) == 'no kernel; use another layer, or CPUs (device="cpu") if it has an implementation there'
    error.rename(fields_of(spec_of()))
    assert "or CPUs (resources.gpus_per_worker: 0) if it has" in str(error)
