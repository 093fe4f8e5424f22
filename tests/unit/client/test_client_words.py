"""What the commands say beside their data, and what they do without a server."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockstep.client import _entry_points, load_spec
from lockstep.v1 import cluster_service_pb2
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.ledger_pb2 import Ledger
from tests.support.scripted_server import ScriptedServer, a_job, an_update, checkpoints, nodes

SPEC = """
name: digits
model: {mlp: {}}
data: {builtin: {name: digits}}
optimizer: {sgd: {learning_rate: 0.1}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return str(path)


def wanting(workers: int, min_workers: int = 1, gpus: int = 0) -> JobSpec:
    resources = {"workers": workers, "min_workers": min_workers, "cpus_per_worker": 0.1, "gpus_per_worker": gpus}
    return JobSpec(name="digits", resources=resources)


def a_node_of(cpus: float, gpus: float = 0) -> cluster_service_pb2.Node:
    return cluster_service_pb2.Node(node_id=f"n{cpus}", total={"cpus": cpus, "gpus": gpus})


SHORT = "the cluster has room for 8 of the 9 workers: the job runs with at most 8 until it has more\n"
SHORT_LATER = (
    "the cluster has room for 8 of the 9 workers: once it is its turn, the job starts with at most 8; "
    "others join when there is room\n"
)


def test_a_submit_for_more_workers_than_there_is_room_for_says_so(
    server: ScriptedServer, lockstep: Any, spec: str
) -> None:
    server.on("ListNodes", nodes(a_node_of(0.3), a_node_of(0.55)))  # 3 and 5 of a tenth, by whatever floats say
    server.on("SubmitJob", a_job(spec=wanting(9)), a_job(spec=wanting(8)))
    assert lockstep("submit", "-f", spec)[2].splitlines()[1] + "\n" == SHORT_LATER
    assert "has room for" not in lockstep("submit", "-f", spec)[2]


@pytest.mark.parametrize(
    ("shards", "options", "told"),
    [
        (8, [], "resources.shards is 8, since 8 workers need as many; it is part of the curve: "),
        (8, ["--dry-run"], "resources.shards is 8, since 8 workers need as many; it is part of the curve: "),
        (2, [], "resources.shards is 2, as many as a batch has examples; it is part of the curve: "),
        (4, [], ""),
        (8, ["--set", "resources.shards=8"], ""),
    ],
)
def test_shards_that_follow_from_the_workers_are_told_since_the_curve_depends_on_them(
    server: ScriptedServer, lockstep: Any, spec: str, shards: int, options: list[str], told: str
) -> None:
    resolved = wanting(8)
    resolved.resources.shards = shards
    server.on("SubmitJob", a_job(spec=resolved))
    server.on("ListNodes", nodes(a_node_of(8)))
    said = [line for line in lockstep("submit", "-f", spec, *options)[2].splitlines() if "shards" in line]
    hint = "set it to compare runs of different numbers of workers"
    assert said == ([told + hint] if told else [])


def test_on_gpus_a_job_is_told_that_it_cannot_grow(server: ScriptedServer, lockstep: Any, spec: str) -> None:
    resolved = wanting(2)
    resolved.resources.shards, resolved.resources.gpus_per_worker = 2, 1
    server.on("SubmitJob", a_job(spec=resolved))
    server.on("ListNodes", nodes(a_node_of(8)))
    told = "resources.shards is 2, as many as workers, which is the fastest on GPUs; the job can grow to no more; "
    assert told in lockstep("submit", "-f", spec)[2]


def test_a_scale_beyond_the_cluster_says_so(server: ScriptedServer, lockstep: Any) -> None:
    server.on("ListNodes", nodes(a_node_of(0.8)))
    server.on("GetJob", a_job("RUNNING"))
    server.on("UpdateJob", a_job("RUNNING", spec=wanting(9), running_workers=8))
    assert lockstep("scale", "j-1", "--workers", "9") == (0, "", f"j-1 is running, with 9 workers wanted\n{SHORT}")


def test_gpus_count_for_the_room(server: ScriptedServer, lockstep: Any) -> None:
    server.on("ListNodes", nodes(a_node_of(8, 2), a_node_of(4)))
    server.on("GetJob", a_job("RUNNING"))
    server.on("UpdateJob", a_job("RUNNING", spec=wanting(4, gpus=1)))
    assert "room for 2 of the 4 workers" in lockstep("scale", "j-1", "--workers", "4")[2]


def test_a_dry_run_prints_the_spec_and_says_what_the_cluster_lacks(
    server: ScriptedServer, lockstep: Any, spec: str
) -> None:
    words = "checked only, nothing is stored; this cluster is too small for it: the job asks for 9 workers"
    server.on("SubmitJob", a_job(job_id="", spec=wanting(9, min_workers=9), state_reason=words))
    server.on("ListNodes", nodes(a_node_of(0.8)))
    code, out, err = lockstep("submit", "-f", spec, "--dry-run")
    assert (code, yaml.safe_load(out)["resources"]["workers"], err) == (0, 9, f"{words}\n")


def test_the_reason_of_a_state_is_told_where_it_says_more_than_the_state(server: ScriptedServer, lockstep: Any) -> None:
    server.on("ListCheckpoints", checkpoints())
    server.on("GetLedger", Ledger())
    for state, reason, is_told in (("RUNNING", "training", False), ("QUEUED", "waits for resources", True)):
        update = an_update(state, state_reason=reason)
        server.on("GetJob", update.job)
        server.on("WatchJob", [update], [])
        code, out, _ = lockstep("describe", "j-1")
        facts = [line.split(maxsplit=1) for line in out.splitlines()]
        assert (code, ["why", reason] in facts) == (0, is_told)


def test_a_spec_is_resolved_without_a_server_as_a_server_would(lockstep: Any, spec: str, unreachable: str) -> None:
    code, out, err = lockstep("resolve", "-f", spec, "--set", "resources.workers=8", target=unreachable)
    assert code == 0
    assert err.startswith("resources.shards is 8, since 8 workers need as many; it is part of the curve: set it to ")
    resolved = yaml.safe_load(out)
    assert resolved["resources"] == {
        "workers": 8,
        "shards": 8,
        "cpus_per_worker": 1.0,
        "gpus_per_worker": 0,
        "gpu_share": 1.0,
        "min_workers": 1,
    }
    assert resolved["model"] == {"mlp": {"hidden_units": [256], "activation": "relu"}}
    assert load_spec(resolved).training.max_epochs == 10


def test_a_spec_that_breaks_a_rule_is_refused_without_a_server_with_every_field(lockstep: Any, spec: str) -> None:
    wrong = ("--set", "training.batch_size=0", "--set", "optimizer.sgd.learning_rate=-1")
    code, out, err = lockstep("resolve", "-f", spec, *wrong)
    assert (code, out) == (3, "")
    assert err.startswith(
        "lockstep: the spec has 2 errors:\n  optimizer.sgd.learning_rate is -1; allowed: greater than 0"
    )
    assert "\n  training.batch_size is 0; allowed: 1 to 1,000,000" in err


@pytest.mark.parametrize("found", [[], [EntryPoint("resolve", "a_part_that_is_not_there:resolve", "lockstep.rules")]])
def test_without_the_rules_it_is_said_what_to_install(
    lockstep: Any, spec: str, monkeypatch: Any, found: list[Any]
) -> None:
    monkeypatch.setattr(_entry_points, "entry_points", lambda group: found)
    code, out, err = lockstep("resolve", "-f", spec)
    assert (code, out) == (1, "")
    assert err.startswith("lockstep: `lockstep resolve` needs ")
    assert err.endswith("not installed: pip install '.[server]' in a checkout of Lockstep\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "-o", "yaml"), "'--output' / '-o': 'yaml' is not one of 'table', 'json'."),
        (("logs", "j", "--tail", "few"), "'--tail': it must be a whole number."),
        (("logs", "j", "--tail", "-1"), "'--tail': it must be greater than or equal to 0"),
        (("wait", "j", "--timeout", "long"), "'--timeout': it must be a number."),
    ],
)
def test_a_wrong_value_of_an_option_is_told_in_plain_words(
    lockstep: Any, arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = lockstep(*arguments)
    assert (code, out) == (2, "")
    assert err.rstrip().endswith(f"Error: Invalid value for {words}")


def test_the_version_is_an_option_too_and_there_is_none_that_does_nothing(lockstep: Any) -> None:
    code, out, _ = lockstep("--version")
    assert (code, out) == (0, lockstep("version")[1])
    assert lockstep("--token", "x", "ls")[0] == 2
    assert "--token" not in lockstep("--help")[1]


def test_what_must_be_given_stands_in_the_usage_without_braces(lockstep: Any) -> None:
    assert lockstep("describe", "--help")[1].startswith("Usage: lockstep describe [OPTIONS] JOB\n")
