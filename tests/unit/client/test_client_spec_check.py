"""The check of a spec before it is sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockstep.client import Client, InvalidSpec, JobSpec
from lockstep.client.spec import load_right_spec, load_spec
from tests.support.scripted_server import ScriptedServer, a_job
from tests.support.specs import DIGITS, SYNTHETIC, spec_of, violations_of


def named(spec: Any) -> dict[str, str]:
    """What is said of each field at fault."""
    with pytest.raises(InvalidSpec) as caught:
        load_right_spec(spec)
    names = [violation.field for violation in caught.value.violations]
    assert len(names) == len(set(names))
    return dict(caught.value.violations)


def test_a_spec_that_breaks_a_rule_is_refused_before_the_call(server: ScriptedServer, client: Client) -> None:
    with pytest.raises(InvalidSpec, match=r"^training\.batch_size is 0; allowed: 1 to 1,000,000; set it to how many"):
        client.submit_job(DIGITS | {"training": {"batch_size": 0}})
    assert not server.requests


def test_a_spec_that_is_right_is_sent_as_it_was_written(server: ScriptedServer, client: Client) -> None:
    server.on("SubmitJob", a_job())
    client.submit_job(DIGITS)
    (request,) = server.requests["SubmitJob"]
    assert request.spec == spec_of(DIGITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__batch_size": 0, "name": "A B", "labels": {"a b": "x"}},
        {"model": {"mlp": {"hidden_units": [0, 1], "dropout": [2.0]}}},
        {"resources__workers": 9, "resources__shards": 4},
        {"init_from": {"step": 7}},
    ],
)
def test_the_client_says_what_the_server_says(changes: dict[str, Any]) -> None:
    spec = spec_of(DIGITS, **changes)
    assert named(spec) == {violation.field: violation.message for violation in violations_of(spec)}


def test_errors_of_form_and_broken_rules_come_at_once() -> None:
    said = named(
        {
            "model": {"mlp": {}, "lenet": {}},
            "data": {"builtin": {"name": "digits", "validation_fraction": 7}},
            "optimizer": {"sgd": {"learning_rate": -1, "momentun": 0.9}},
            "training": {"batch_size": "many", "log_every_steps": 0},
            "resources": {"workers": 9, "shards": 4},
        }
    )
    assert set(said) == {
        "model",
        "data.builtin.validation_fraction",
        "optimizer.sgd.learning_rate",
        "optimizer.sgd.momentun",
        "training.batch_size",
        "training.log_every_steps",
        "resources.workers",
    }
    assert said["model"].startswith("set exactly one of")
    assert said["training.batch_size"] == 'must be a whole number, got "many"'
    assert said["resources.workers"].startswith("resources.workers is 9; allowed: at most resources.shards, and")


@pytest.mark.parametrize(
    ("section", "fields"),
    [
        ({"model": "mlp"}, {"model"}),
        ({"model": {"mlp": None}}, {"model.mlp"}),
        ({"model": {"resnet": {}}}, {"model.resnet"}),
        ({"data": {"builtin": "digits"}}, {"data.builtin"}),
        ({"data": {"builtin": {"name": 7}}}, {"data.builtin.name"}),
        ({"data": {"builtin": {"nam": "digits"}}}, {"data.builtin.nam", "data.builtin.name"}),
        ({"resources": [3], "training": {"batch_size": 2}}, {"resources"}),
        ({"resources": {"shards": "x", "workers": 1024}}, {"resources.shards"}),
        ({"resources": {"workers": 9}, "training": {"batch_size": "x"}}, {"training.batch_size"}),
        ({"model": {"mlp": {"hidden_units": [0, "x"]}}}, {"model.mlp.hidden_units[0]", "model.mlp.hidden_units[1]"}),
        ({"labels": {"team": 7, "a b": "x"}}, {"labels.team", 'labels["a b"]'}),
        ({"training": {"max_steps": "x", "log_every_steps": 1}}, {"training.max_steps"}),
    ],
)
def test_of_what_could_not_be_read_nothing_else_is_said(section: dict[str, Any], fields: set[str]) -> None:
    assert set(named(DIGITS | section)) == fields


def test_all_that_is_missing_is_named() -> None:
    assert set(named({})) == set(named(JobSpec())) == {"model", "data", "optimizer"}
    assert set(named(SYNTHETIC | {"data": {"synthetic_regression": {}}})) == {"data.synthetic_regression.w"}


def test_a_part_of_a_spec_can_still_be_loaded() -> None:
    assert load_spec({"training": {"batch_size": 0}}).training.batch_size == 0


def test_submit_and_resolve_name_both_sorts_at_once(server: ScriptedServer, lockstep: Any, tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(json.dumps(DIGITS | {"training": {"batch_size": 0, "sed": 7}}))
    answers = [lockstep(command, "-f", str(path)) for command in ("submit", "resolve")]
    assert answers[0] == answers[1]
    code, out, err = answers[0]
    assert (code, out) == (3, "")
    assert err.startswith("lockstep: the spec has 2 errors:\n  training.sed: unknown key; did you mean seed?")
    assert "\n  training.batch_size is 0; allowed: 1 to 1,000,000" in err
    assert not server.requests
