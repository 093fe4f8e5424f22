from __future__ import annotations

from pathlib import Path

from lockstep.server.spec.digests import curve_digest, submit_digest
from lockstep.server.spec.rules import Site
from lockstep.server.spec.validation import resolve
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.server import digits_spec

SITE = Site(Path("/srv"), shares_files_with_workers=False)


def resolved(**changes: object) -> JobSpec:
    return resolve(digits_spec(**changes), SITE)


def test_what_lies_outside_the_curve_leaves_its_digest_as_it_is() -> None:
    digest = curve_digest(resolved())
    assert curve_digest(resolved(name="other")) == digest
    assert curve_digest(resolved(labels={"team": "x"})) == digest
    assert curve_digest(resolved(resources={"workers": 3})) == digest
    assert curve_digest(resolved(resources={"workers": 3, "min_workers": 2})) == digest
    on_a_gpu = curve_digest(resolved(resources={"gpus_per_worker": 1}))
    assert curve_digest(resolved(resources={"gpus_per_worker": 1, "gpu_share": 0.25})) == on_a_gpu
    assert curve_digest(resolved(training={"audit": "always"})) == digest
    assert curve_digest(resolved(recovery={"max_restarts": 0})) == digest
    recovery = {"checkpoint_every_steps": 7, "keep_checkpoints": 9, "checkpoint_uri": "/c", "hang_timeout_s": 1}
    assert curve_digest(resolved(recovery=recovery)) == digest


def test_what_the_curve_depends_on_changes_its_digest() -> None:
    digests = {
        curve_digest(spec)
        for spec in (
            resolved(),
            resolved(training={"seed": 1}),
            resolved(resources={"shards": 2}),
            resolved(resources={"cpus_per_worker": 2}),
            resolved(optimizer={"sgd": {"learning_rate": 0.2}}),
            resolved(model={"softmax_regression": {}}),
            resolved(training={"precision": "bf16"}),
            resolved(training={"memory_format": "channels_last"}),
            resolved(init_from={"uri": "/c/step-000000000200"}),
            resolved(init_from={"job_id": "job-1", "step": 200}),
            resolved(init_from={"job_id": "job-1", "step": 400}),
        )
    }
    assert len(digests) == 11


def test_a_spec_that_was_resolved_before_there_was_a_precision_is_the_same_curve() -> None:
    now, then = resolved(), resolved()
    then.training.ClearField("precision")
    then.training.ClearField("memory_format")
    assert now.training.precision == "fp32"
    assert curve_digest(now) == curve_digest(then)


def test_the_same_first_weights_are_the_same_curve_whichever_job_wrote_them() -> None:
    one, other = resolved(init_from={"job_id": "job-1", "step": 2}), resolved(init_from={"job_id": "job-2", "step": 4})
    assert curve_digest(one, "abc") == curve_digest(other, "abc") != curve_digest(other, "def")
    assert curve_digest(one, "abc") != curve_digest(resolved())


def test_a_default_and_the_same_value_written_out_are_one_curve_but_two_requests() -> None:
    plain, written = digits_spec(), digits_spec(training={"batch_size": 32})
    assert curve_digest(resolve(plain, SITE)) == curve_digest(resolve(written, SITE))
    assert submit_digest(plain) != submit_digest(written)
