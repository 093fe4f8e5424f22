from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from lockstep.client import load_spec
from lockstep.client.cli import output
from lockstep.v1.catalog_service_pb2 import ListDatasetsResponse, ListModelsResponse, ListOptimizersResponse
from lockstep.v1.job_service_pb2 import ListJobsResponse
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.v1.metrics_service_pb2 import ListMetricsResponse
from tests.support.scripted_server import (
    Refusal,
    ScriptedServer,
    a_job,
    a_point,
    an_update,
    points,
    violations,
)
from tests.unit.client.conftest import Lockstep

SPEC = """
name: digits
model: {mlp: {}}
data: {builtin: {name: digits}}
optimizer: {sgd: {learning_rate: 0.1}}
training: {seed: 7}
"""
SUCCEEDED: dict[str, Any] = {"result": {"weights_digest": "ab12", "final_metrics": {"val_accuracy": 0.97}}}


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(SPEC)
    return str(path)


def test_submit_prints_only_the_job_id_on_standard_output(
    server: ScriptedServer, lockstep: Lockstep, spec: str
) -> None:
    server.on("SubmitJob", a_job())
    code, out, err = lockstep("submit", "-f", spec, "--set", "training.seed=8", "--request-id", "mine")
    assert (code, out) == (0, "j-1\n")
    assert err == (
        "digits is queued; see how it gets on with: lockstep wait j-1, its curve with: lockstep metrics j-1 -f\n"
    )
    (request,) = server.requests["SubmitJob"]
    assert request.spec == load_spec(spec, ["training.seed=8"])
    assert (request.request_id, request.validate_only) == ("mine", False)


def test_a_dry_run_prints_the_resolved_spec_as_yaml(server: ScriptedServer, lockstep: Lockstep, spec: str) -> None:
    resolved = JobSpec(name="007", model={"mlp": {"hidden_units": [256]}}, training={"max_steps": 12})
    server.on("SubmitJob", a_job(job_id="", spec=resolved, state_reason="checked only, nothing is stored"))
    code, out, err = lockstep("submit", "-f", spec, "--dry-run")
    assert (code, err) == (0, "checked only, nothing is stored\n")
    assert yaml.safe_load(out) == {
        "name": "007",
        "model": {"mlp": {"hidden_units": [256]}},
        "training": {"max_steps": 12},
    }
    assert server.requests["SubmitJob"][0].validate_only


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (an_update("SUCCEEDED", **SUCCEEDED), 0, "succeeded; val_accuracy 0.97\nweights ab12\n"),
        (an_update("FAILED", error={"message": "lost"}), 1, "lockstep: j-1 failed: lost\n"),
        (
            an_update("FAILED", error={"message": "lost", "traceback": "Trace"}),
            1,
            "lockstep: j-1 failed: lost\nsee where with: lockstep describe j-1\n",
        ),
        (an_update("CANCELLED"), 1, "lockstep: j-1 was cancelled\n"),
    ],
)
def test_following_a_submit_ends_with_the_outcome(
    server: ScriptedServer, lockstep: Lockstep, spec: str, end: Any, code: int, said: str
) -> None:
    server.on("SubmitJob", a_job())
    server.on("ListMetrics", ListMetricsResponse())
    server.on("WatchJob", [end])
    assert lockstep("submit", "-f", spec, "--follow") == (code, "j-1\n", said)


def test_interrupting_a_followed_submit_leaves_the_job_running(
    server: ScriptedServer, lockstep: Lockstep, spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lockstep.client.job.Job.wait", interrupt)
    server.on("SubmitJob", a_job())
    code, out, err = lockstep("submit", "-f", spec, "--follow")
    assert (code, out) == (130, "j-1\n")
    assert "j-1 goes on; see its progress again with: lockstep wait j-1, stop it with: lockstep cancel j-1" in err
    assert not server.requests["CancelJob"]


REFUSALS = [
    (Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no", violations("SPEC_INVALID", name="is bad")), 3, "name: is bad"),
    (Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large"), 3, "too large"),
    (Refusal(grpc.StatusCode.ALREADY_EXISTS, "request_id taken"), 7, "request_id taken"),
    (Refusal(grpc.StatusCode.FAILED_PRECONDITION, "too small"), 7, "too small"),
    (Refusal(grpc.StatusCode.INTERNAL, "an error in the server"), 1, "an error in the server"),
    (Refusal(grpc.StatusCode.DEADLINE_EXCEEDED, ""), 6, "the server at {target} did not answer in time"),
]


@pytest.mark.parametrize(("refusal", "code", "message"), REFUSALS)
def test_a_refused_submit_says_why_and_exits_so(
    server: ScriptedServer, lockstep: Lockstep, spec: Any, refusal: Any, code: int, message: str
) -> None:
    server.on("SubmitJob", refusal)
    assert lockstep("submit", "-f", spec) == (code, "", f"lockstep: {message.format(target=server.target)}\n")


def test_a_spec_that_cannot_be_read_exits_with_3(server: ScriptedServer, lockstep: Lockstep, spec: str) -> None:
    code, out, err = lockstep("submit", "-f", spec, "--set", "training.batchsize=3")
    assert (code, out) == (3, "")
    assert err.startswith("lockstep: training.batchsize: unknown key; did you mean batch_size? allowed: max_epochs, ")
    assert not server.requests


@pytest.mark.parametrize("command", ["get", "describe", "metrics", "watch", "wait", "cancel", "pause", "resume"])
def test_a_job_that_is_not_there_exits_with_4(server: ScriptedServer, lockstep: Lockstep, command: str) -> None:
    server.on("GetJob", Refusal(grpc.StatusCode.NOT_FOUND, "there is no job j-9"))
    server.on("ListJobs", ListJobsResponse())
    assert lockstep(command, "j-9") == (4, "", "lockstep: there is no job j-9\n")


def test_an_absent_server_exits_with_5(lockstep: Lockstep, unreachable: str) -> None:
    code, out, err = lockstep("ls", target=unreachable)
    assert (code, out) == (5, "")
    assert err.startswith(f"lockstep: no Lockstep server answers at {unreachable}; start one with `lockstep serve`")


CHANGES = [["scale", "j-1"], ["scale", "j-1", "--workers", "0"], ["download"], ["pause"]]


@pytest.mark.parametrize("arguments", [["submit"], ["nonsense"], ["ls", "--nonsense"], ["ls", "-l", "team"], *CHANGES])
def test_a_wrong_command_line_exits_with_2(lockstep: Lockstep, arguments: list[str]) -> None:
    code, out, err = lockstep(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: lockstep" in err


def test_metrics_as_csv_keep_their_bits_and_put_results_first(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job())
    server.on(
        "ListMetrics",
        ListMetricsResponse(
            points=[a_point("samples_per_second", 1, 1e5, "TIMING"), a_point("train_loss", 1, 0.1 + 0.2)],
            next_page_token="more",
        ),
        ListMetricsResponse(points=[a_point("train_loss", 2, float("nan"))]),
    )
    code, out, err = lockstep("metrics", "j-1", "-o", "csv")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "name,step,epoch,value",
        "train_loss,1,0.1,0.30000000000000004",
        "train_loss,2,0.2,nan",
        "samples_per_second,1,0.1,100000.0",
    ]


def test_metrics_as_json_are_numbers(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job())
    server.on("ListMetrics", ListMetricsResponse(points=[a_point("train_loss", 1, 0.5), a_point("x", 2, float("inf"))]))
    _, out, _ = lockstep("metrics", "j-1", "-o", "json")
    assert json.loads(out) == [
        {"name": "train_loss", "step": 1, "epoch": 0.1, "value": 0.5, "kind": "RESULT"},
        {"name": "x", "step": 2, "epoch": 0.2, "value": "Infinity", "kind": "RESULT"},
    ]


def test_metrics_as_a_table_have_a_row_for_each_step_and_fit_80_columns(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    names = ("grad_norm", "learning_rate", "train_accuracy", "train_loss", "val_accuracy", "val_loss")
    entries = [a_point(name, step, 0.123456789) for step in (50, 100_000) for name in names]
    entries.append(a_point("samples_per_second", 50, 12345.678, "TIMING"))
    server.on("GetJob", a_job())
    server.on("ListMetrics", ListMetricsResponse(points=entries))
    code, out, _ = lockstep("metrics", "j-1")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = [line.split() for line in out.splitlines()]
    assert ["step", "epoch", "loss", "accuracy", "loss", "accuracy", "norm", "rate"] in rows
    assert ["50", "5.00", *["0.12346"] * 6] in rows
    assert ["100000", "10000.00", *["0.12346"] * 6] in rows
    assert "second" not in out
    _, out, _ = lockstep("metrics", "j-1", "--timing")
    assert ["50", "5.00", "12346"] in [line.split() for line in out.splitlines()]


def test_metrics_of_some_names_are_asked_for_and_stand_in_their_order(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    entries = [a_point("train_loss", 50, 0.5), a_point("val_loss", 50, 0.25)]
    entries.append(a_point("step_seconds", 50, 0.125, "TIMING"))
    server.on("GetJob", a_job())
    server.on("ListMetrics", ListMetricsResponse(points=entries))
    named = [word for name in ("val_loss", "train_loss", "step_seconds") for word in ("--name", name)]
    _, out, _ = lockstep("metrics", "j-1", *named)
    assert ["50", "5.00", "0.25", "0.5"] in [line.split() for line in out.splitlines()]
    assert ["50", "5.00", "0.125"] in [line.split() for line in out.splitlines()]
    assert list(server.requests["ListMetrics"][0].names) == ["val_loss", "train_loss", "step_seconds"]


def test_metrics_that_are_followed_are_a_table_that_gets_its_columns_as_they_come(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    first = [a_point(name, 50, 0.5) for name in ("grad_norm", "train_loss")]
    timing = a_point("step_seconds", 50, 0.125, "TIMING")
    later = [a_point(name, 60, 0.25) for name in ("grad_norm", "train_loss", "val_loss")]
    server.on("GetJob", a_job("RUNNING"))
    server.on("StreamMetrics", [points("1", *first, timing), points("2", *later)])
    _, out, _ = lockstep("metrics", "j-1", "-f")
    assert out.splitlines() == [
        "                     train      grad",
        "   step    epoch      loss      norm",
        "     50     5.00       0.5       0.5",
        "                     train       val      grad",
        "   step    epoch      loss      loss      norm",
        "     60     6.00      0.25      0.25      0.25",
    ]
    lockstep("metrics", "j-1", "-f", "--name", "train_loss")
    assert list(server.requests["StreamMetrics"][-1].names) == ["train_loss"]


def test_a_step_whose_points_come_in_two_messages_is_one_row(server: ScriptedServer, lockstep: Lockstep) -> None:
    full = [a_point("train_loss", step, 0.5) for step in range(1, 1_000)] + [a_point("grad_norm", 1_000, 0.5)]
    server.on("GetJob", a_job("RUNNING"))
    server.on("StreamMetrics", [points("1", *full), points("2", a_point("train_loss", 1_000, 0.25))])
    _, out, _ = lockstep("metrics", "j-1", "-f", "--name", "train_loss", "--name", "grad_norm")
    assert [line.split() for line in out.splitlines()][-2:] == [
        ["999", "99.90", "0.5"],
        ["1000", "100.00", "0.25", "0.5"],
    ]


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ("csv", ["name,step,epoch,value", "train_loss,1,0.1,0.5", "train_loss,2,0.2,0.25"]),
        (
            "json",
            [
                '{"name": "train_loss", "step": 1, "epoch": 0.1, "value": 0.5, "kind": "RESULT"}',
                '{"name": "train_loss", "step": 2, "epoch": 0.2, "value": 0.25, "kind": "RESULT"}',
            ],
        ),
        (
            "table",
            [
                "                     train",
                "   step    epoch      loss",
                "      1     0.10       0.5",
                "      2     0.20      0.25",
            ],
        ),
    ],
)
def test_metrics_can_be_followed(server: ScriptedServer, lockstep: Lockstep, form: str, lines: list[str]) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on(
        "StreamMetrics", [points("1", a_point("train_loss", 1, 0.5)), points("2", a_point("train_loss", 2, 0.25))]
    )
    code, out, err = lockstep("metrics", "j-1", "-f", "-o", form)
    assert (code, out.splitlines(), err) == (0, lines, "")


def test_watch_prints_a_line_for_each_event_and_exits_by_the_outcome(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    server.on("GetJob", a_job())
    failed = an_update("FAILED", (2, "lost"), error={"message": "lost", "traceback": "Trace"})
    server.on("WatchJob", [an_update("RUNNING", (1, "first\nstep")), failed], [an_update("SUCCEEDED", (1, "done"))])
    code, out, err = lockstep("watch", "j-1")
    assert code == 1
    assert [line.split() for line in out.splitlines()] == [
        ["RUNNING", "attempt", "1", "first", "step"],
        ["FAILED", "attempt", "1", "lost"],
    ]
    assert err == "see where with: lockstep describe j-1\n"  # why was said by the last event
    code, out, err = lockstep("watch", "j-1")
    assert (code, out.split()[-1], err) == (0, "done", "")


def test_watch_says_what_a_job_failed_of(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job())
    error = {"reason": "DATA_INVALID", "field": "data.idx.root", "message": "/x is damaged\nat its end"}
    server.on("WatchJob", [an_update("FAILED", (1, "DATA_INVALID"), error=error)])
    _, out, _ = lockstep("watch", "j-1")
    assert out.rstrip().endswith("attempt 1   DATA_INVALID: data.idx.root: /x is damaged")


def test_wait_says_how_the_job_ended(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("WatchJob", [an_update("SUCCEEDED", **SUCCEEDED)], [an_update("CANCELLED")])
    assert lockstep("wait", "j-1") == (0, "", "succeeded; val_accuracy 0.97\nweights ab12\n")
    assert lockstep("wait", "j-1") == (1, "", "lockstep: j-1 was cancelled\n")


def test_wait_that_times_out_exits_with_6(server: ScriptedServer, lockstep: Lockstep, release: threading.Event) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("WatchJob", [lambda context: release.wait(timeout=30)])
    code, out, err = lockstep("wait", "j-1", "--timeout", "0.1")
    assert (code, out) == (6, "")
    assert err == "lockstep: j-1 has not ended after 0.1 s: it is RUNNING\n"


def test_cancel_tells_the_state(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("GetJob", a_job("RUNNING"))
    server.on("CancelJob", a_job("CANCELLING"), Refusal(grpc.StatusCode.FAILED_PRECONDITION, "job j-1 has ended"))
    assert lockstep("cancel", "j-1") == (0, "", "j-1 is cancelling\n")
    assert lockstep("cancel", "j-1") == (7, "", "lockstep: job j-1 has ended\n")


def test_the_catalog_is_listed_with_types_limits_and_defaults(server: ScriptedServer, lockstep: Lockstep) -> None:
    parameters = [
        {"name": "hidden_units", "type": "list of integers", "default_json": "[256]", "limits": "1 to 64 layers."},
        {"name": "root", "type": "string", "required": True},
    ]
    entry = {"name": "mlp", "description": "A perceptron.", "parameters": parameters, "tasks": ["classification"]}
    server.on("ListModels", ListModelsResponse(models=[entry]))
    server.on("ListDatasets", ListDatasetsResponse(datasets=[entry]))
    code, out, _ = lockstep("models")
    assert code == 0
    assert [line.rstrip() for line in out.splitlines()] == [
        "model.mlp (classification)",
        "  A perceptron.",
        "    hidden_units  list of integers; 1 to 64 layers; default [256]",
        "    root          string; required",
    ]
    server.on("ListOptimizers", ListOptimizersResponse(optimizers=[{"name": "sgd", "description": "Descent."}]))
    assert lockstep("optimizers") == (0, "optimizer.sgd\n  Descent.\n", "")
    _, out, _ = lockstep("datasets", "-o", "json")
    assert json.loads(out)[0]["parameters"][0]["default"] == [256]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "3 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 d"), (1e6, "12 d")],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert output.duration(seconds) == said


@pytest.mark.parametrize(
    ("size_bytes", "said"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (6_000, "5.9 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 50, "5,120.0 TiB"),
    ],
)
def test_sizes_have_binary_units(size_bytes: int, said: str) -> None:
    assert output.size(size_bytes) == said
