from __future__ import annotations

from pathlib import Path

from lockstep.server.rules import Site
from lockstep.server.spec import curve_digest, submit_digest
from lockstep.server.validation import resolve
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.unit.server.harness import digits_spec

SITE = Site(Path("/srv"), shares_files_with_workers=False)


def resolved(**changes: object) -> JobSpec:
    return resolve(digits_spec(**changes), SITE)


def test_what_lies_outside_the_curve_leaves_its_digest_as_it_is() -> None:
    digest = curve_digest(resolved())
    assert curve_digest(resolved(name="other")) == digest
    assert curve_digest(resolved(labels={"team": "x"})) == digest
    assert curve_digest(resolved(resources={"workers": 3})) == digest
    assert curve_digest(resolved(recovery={"max_restarts": 0})) == digest


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
        )
    }
    assert len(digests) == 6


def test_a_default_and_the_same_value_written_out_are_one_curve_but_two_requests() -> None:
    plain, written = digits_spec(), digits_spec(training={"batch_size": 32})
    assert curve_digest(resolve(plain, SITE)) == curve_digest(resolve(written, SITE))
    assert submit_digest(plain) != submit_digest(written)
