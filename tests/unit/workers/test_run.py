"""A resolved spec that is run without a server: read by the rules of the client, and its weights kept."""

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml

from lockstep.client import load_spec
from lockstep.workers import run as run_module
from lockstep.workers.engine.state.checkpoint import read_weights
from lockstep.workers.engine.state.digest import digest_of
from tests.support.processes import run_as_main

SPEC = """
name: d
labels: {who: Jörg}
model: {mlp: {hidden_units: [16], activation: relu}}
data: {builtin: {name: digits, validation_fraction: 0.2}}
optimizer: {sgd: {learning_rate: 0.1}}
training: {max_steps: 10, batch_size: 64, seed: 7, log_every_steps: 5}
resources: {workers: 1, shards: 4, cpus_per_worker: 1.0, min_workers: 1}
recovery: {checkpoint_every_steps: 1000, keep_checkpoints: 2}
"""


RUN = "lockstep.workers.run"


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    return run_as_main(RUN, write(folder, text), *options)


def run_as_a_user(folder: Path, text: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same with all that happens at the start and at the end of a program, which takes seconds."""
    return subprocess.run(
        [sys.executable, "-m", RUN, write(folder, text), *options],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def write(folder: Path, text: str) -> str:
    path = folder / "resolved.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_weights_are_kept_whole_with_spec_and_preprocessing(tmp_path: Path) -> None:
    done = run(tmp_path, SPEC, "-o", str(tmp_path / "weights"))
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = (tmp_path / "weights").iterdir()
    digest = json.loads(done.stdout.splitlines()[-1])["weights_digest"]
    assert folder.name == "step-000000000010"
    assert digest_of(read_weights(str(folder), 1 << 20)) == digest
    manifest = json.loads((folder / "manifest.json").read_text())
    assert load_spec(manifest["spec"]) == load_spec(tmp_path / "resolved.yaml")
    assert manifest["preprocessing"] == {"inputs": {"divide_by": 16.0}}
    again = run(tmp_path, SPEC, "-o", str(tmp_path / "weights"))
    assert (again.returncode, again.stdout) == (2, "")
    assert "holds a checkpoint already; remove it, or name another folder" in again.stderr


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    run(tmp_path, SPEC, "-o", str(tmp_path / "first"))
    (tmp_path / "newest").symlink_to(tmp_path / "first" / "step-000000000010")
    data = yaml.safe_load(SPEC) | {"init_from": {"uri": f"{tmp_path}/newest"}}
    fresh, goes_on = (run(tmp_path, text).stdout.splitlines()[-1] for text in (SPEC, json.dumps(data)))
    assert json.loads(fresh)["weights_digest"] != json.loads(goes_on)["weights_digest"]
    data["init_from"] = {"job_id": "job-1"}
    refused = run(tmp_path, json.dumps(data))
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "set init_from.uri to the folder of its checkpoint" in refused.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seed: 7", "seed: 010", "training.seed"),
        ("seed: 7", "seed: 7, seed: 8", "key 'seed' twice"),
        (
            "shards: 4, ",
            "",
            "is no resolved spec, since it has no resources.shards; make one: lockstep resolve -f SPEC",
        ),
        (SPEC, "- a", "a spec must be a mapping of keys to values"),
        (SPEC, "", "is empty"),
        ("batch_size: 64", "batch_sizes: 64", "training.batch_sizes"),
        ("max_steps: 10", "max_steps: ten", "training.max_steps"),
    ],
)
def test_what_the_client_refuses_is_refused_in_words(tmp_path: Path, old: str, new: str, words: str) -> None:
    done = run(tmp_path, SPEC.replace(old, new))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lockstep.workers.run: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_what_cannot_be_trained_is_told_without_a_traceback(tmp_path: Path) -> None:
    nowhere = SPEC.replace("builtin: {name: digits, validation_fraction: 0.2}", "idx: {root: /nowhere}")
    wild = SPEC.replace("[16]", f"[{', '.join(['64'] * 12)}]").replace("name: digits", "name: diabetes")
    wild = wild.replace("learning_rate: 0.1", "learning_rate: 1000")
    for text, code, words in ((nowhere, 2, "data.idx.root: "), (wild, 1, "Try a lower optimizer.sgd.learning_rate")):
        done = run(tmp_path, text)
        assert (done.returncode, words in done.stderr) == (code, True), done.stderr
        assert done.stderr.startswith("lockstep.workers.run: ")
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told_without_a_traceback(tmp_path: Path) -> None:
    done = run(tmp_path, SPEC.replace("resources: {", "resources: {gpus_per_worker: 1, gpu_share: 0.5, "))
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("lockstep.workers.run: PyTorch cannot compute on cuda:0: ")
    assert done.stderr.endswith("; or use CPUs (resources.gpus_per_worker: 0)\n")


def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    done = run_as_a_user(tmp_path, SPEC, LC_ALL="POSIX", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert done.returncode == 0, done.stderr


def test_each_line_is_valid_json_when_numbers_are_none(tmp_path: Path) -> None:
    hidden = "[" + ", ".join(["64"] * 12) + "]"
    wild = SPEC.replace("[16]", hidden).replace("name: digits", "name: diabetes").replace("rate: 0.1", "rate: 1000")
    wild = wild.replace("max_steps: 10", "max_steps: 2, evaluate_every_steps: 1").replace("steps: 5", "steps: 1")
    done = run(tmp_path, wild)

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    values = [json.loads(line, parse_constant=refuse).get("value") for line in done.stdout.splitlines()]
    assert {"NaN", "Infinity"} & set(values), done


def test_a_quiet_run_prints_the_result_alone(tmp_path: Path) -> None:
    loud, quiet = run(tmp_path, SPEC), run_as_a_user(tmp_path, SPEC, "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert quiet.stdout.splitlines() == loud.stdout.splitlines()[-1:]


def test_every_mistake_is_named_by_the_rules_at_once(tmp_path: Path) -> None:
    bad = SPEC.replace("batch_size: 64", "batch_size: 0").replace("log_every_steps: 5", "log_every_steps: -1")
    bad = bad.replace("learning_rate: 0.1", "learning_rate: -1").replace("hidden_units: [16]", "hidden_units: [0]")
    done = run(tmp_path, bad.replace("shards: 4", "shards: 0"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "has 5 errors:" in done.stderr
    fields = "training.batch_size training.log_every_steps optimizer.sgd.learning_rate model.mlp.hidden_units"
    for field in (*fields.split(), "resources.shards"):
        assert f"\n  {field}" in done.stderr
    assert "since it has no" not in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("batch_size: 64", "batch_size: 0", "training.batch_size is 0, and must be more than 0"),
        ("batch_size: 64, ", "", "since it has no training.batch_size"),
    ],
)
def test_without_the_rules_what_is_absent_or_not_valid_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], old: str, new: str, words: str
) -> None:
    missing = EntryPoint("resolve", "a_part_that_is_not_there:resolve", "lockstep.rules")
    load = EntryPoint("load", "lockstep.client.spec:load_spec", "lockstep.specs")
    monkeypatch.setattr(run_module, "entry_points", lambda group, name: [missing if name == "resolve" else load])
    path = tmp_path / "resolved.yaml"
    path.write_text(SPEC.replace(old, new), encoding="utf-8")
    with pytest.raises(SystemExit):
        run_module._read(str(path))
    assert words in capsys.readouterr().err


def test_whoever_reads_only_the_first_lines_sees_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "resolved.yaml"
    path.write_text(SPEC.replace("log_every_steps: 5", "log_every_steps: 1"), encoding="utf-8")
    command = [sys.executable, "-m", "lockstep.workers.run", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
    assert running.returncode == 141


def test_points_say_their_kind_as_the_command_line_does(tmp_path: Path) -> None:
    points = [json.loads(line) for line in run(tmp_path, SPEC).stdout.splitlines()[:-1]]
    assert {point["name"]: point["kind"] for point in points}["step_seconds"] == "TIMING"
    assert {point["kind"] for point in points if point["name"] == "train_loss"} == {"RESULT"}
    assert all(list(point) == ["name", "step", "epoch", "value", "kind"] for point in points)
