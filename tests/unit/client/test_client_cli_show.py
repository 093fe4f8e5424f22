"""Jobs shown by the command line: ls, get, describe."""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import Any

import yaml

from lockstep.v1.job_service_pb2 import ListJobsResponse
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.scripted_server import ScriptedServer, a_checkpoint, a_job, an_update, checkpoints
from tests.unit.client.conftest import Lockstep
from tests.unit.client.test_client_cli import SUCCEEDED


def test_ls_fits_80_columns_and_shows_whole_ids(server: ScriptedServer, lockstep: Lockstep) -> None:
    progress = {"step": 45, "total_steps": 100, "epoch": 1.0}
    long_name = JobSpec(name="a-very-" + "long-" * 11 + "name")
    ids = ["01hzzzzzzzzzzzzzzzzzzzzzzz", "0190a0c5-7e4e-7d2c-9f6a-0d6f2b1c3d4e"]
    jobs = [a_job("RUNNING", ids[0], spec=long_name, progress=progress), a_job("QUEUED", ids[1])]
    server.on("ListJobs", ListJobsResponse(jobs=jobs))
    code, out, err = lockstep("ls", "-l", "team=vision", "--state", "RUNNING", "--state", "queued")
    assert (code, err) == (0, "")
    header, first, second = out.splitlines()
    assert header.split() == ["JOB", "NAME", "STATE", "DONE", "WORKERS", "CREATED"]
    assert first.split() == [ids[0], first.split()[1], "RUNNING", "45", "%", "now"]
    assert second.split() == [ids[1], "digits", "QUEUED", "now"]
    assert all(len(line) <= 80 for line in out.splitlines())
    (request,) = server.requests["ListJobs"]
    assert (dict(request.labels), list(request.states)) == ({"team": "vision"}, [3, 1])


def test_ls_offers_every_state_but_the_unknown_one(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("ListJobs", ListJobsResponse())
    assert lockstep("ls", "--state", "Paused")[0] == 0
    assert list(server.requests["ListJobs"][0].states) == [9]
    code, _, err = lockstep("ls", "--state", "unspecified")
    assert code == 2
    assert "'unspecified' is not one of queued, starting, running, succeeded, failed, cancelled, cancelling" in err
    assert "unspecified" not in lockstep("ls", "--help")[1]


def test_ls_tells_the_workers_that_run_and_the_heals_when_there_are_any(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    spec = JobSpec(name="digits", resources={"workers": 3})
    running = a_job("RUNNING", "j-2", spec=spec, running_workers=2)
    server.on(
        "ListJobs",
        ListJobsResponse(jobs=[running]),
        ListJobsResponse(jobs=[running, a_job("PAUSED", "j-1", spec=spec, heals=4)]),
    )
    assert [line.split() for line in lockstep("ls")[1].splitlines()] == [
        ["JOB", "NAME", "STATE", "DONE", "WORKERS", "CREATED"],
        ["j-2", "digits", "RUNNING", "2/3", "now"],
    ]
    assert [line.split() for line in lockstep("ls")[1].splitlines()] == [
        ["JOB", "NAME", "STATE", "DONE", "WORKERS", "HEALS", "CREATED"],
        ["j-2", "digits", "RUNNING", "2/3", "now"],
        ["j-1", "digits", "PAUSED", "4", "now"],
    ]


def test_ls_tells_the_workers_of_jobs_of_which_none_are_known_to_run(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    spec = JobSpec(name="digits", resources={"workers": 3})
    states = ("RUNNING", "STARTING", "QUEUED", "SUCCEEDED")
    server.on("ListJobs", ListJobsResponse(jobs=[a_job(state, f"j-{state}", spec=spec) for state in states]))
    told = [line.split() for line in lockstep("ls")[1].splitlines()[1:]]
    assert [line[3] for line in told] == ["?/3", "0/3", "0/3", "now"]


def test_ls_tells_the_owners_when_there_are_several_and_may_ask_for_one(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    of_ann, of_bob = a_job(job_id="j-1", owner="ann"), a_job(job_id="j-2", owner="bob")
    server.on("ListJobs", ListJobsResponse(jobs=[of_bob, of_ann]), ListJobsResponse(jobs=[of_ann]), ListJobsResponse())
    assert [line.split() for line in lockstep("ls")[1].splitlines()] == [
        ["JOB", "NAME", "OWNER", "STATE", "DONE", "WORKERS", "CREATED"],
        ["j-2", "digits", "bob", "QUEUED", "now"],
        ["j-1", "digits", "ann", "QUEUED", "now"],
    ]
    assert "OWNER" not in lockstep("ls", "--owner", "ann")[1]
    assert lockstep("ls", "--owner", "eve") == (0, "", "no such jobs\n")
    assert [request.owner for request in server.requests["ListJobs"]] == ["", "ann", "eve"]


def test_ls_as_json_has_all_jobs(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on(
        "ListJobs",
        ListJobsResponse(jobs=[a_job(job_id="j-2")], next_page_token="more"),
        ListJobsResponse(jobs=[a_job(job_id="j-1")]),
    )
    code, out, _ = lockstep("ls", "-o", "json")
    assert code == 0
    assert [(job["job_id"], job["state"]) for job in json.loads(out)] == [
        ("j-2", "JOB_STATE_QUEUED"),
        ("j-1", "JOB_STATE_QUEUED"),
    ]


def test_ls_without_jobs_says_so_on_standard_error(server: ScriptedServer, lockstep: Lockstep) -> None:
    server.on("ListJobs", ListJobsResponse())
    assert lockstep("ls") == (0, "", "no jobs\n")
    assert lockstep("ls", "-o", "json") == (0, "[]\n", "")


def test_get_prints_the_json_form_with_the_field_names_of_the_contract(
    server: ScriptedServer, lockstep: Lockstep
) -> None:
    server.on("GetJob", a_job("SUCCEEDED", progress={"step": 60, "total_steps": 60, "epoch": 3}, **SUCCEEDED))
    _, as_json, _ = lockstep("get", "j-1")
    _, as_yaml, _ = lockstep("get", "j-1", "-o", "yaml")
    job = json.loads(as_json)
    assert job["job_id"] == "j-1"
    assert job["progress"] == {"step": 60, "total_steps": 60, "epoch": 3.0}
    assert job["result"] == {"weights_digest": "ab12", "final_metrics": {"val_accuracy": 0.97}}
    assert yaml.safe_load(as_yaml) == job


def test_describe_tells_everything_of_a_failed_job(server: ScriptedServer, lockstep: Lockstep) -> None:
    error = {
        "reason": "USER_ERROR",
        "message": "division by zero",
        "traceback": "Trace [red]\n  x/0\x1b[2J\n",
        "rank": 1,
    }
    progress = {"step": 30, "total_steps": 60, "epoch": 1.5}
    failed = an_update("FAILED", (1, "queued"), (2, "failed"), error=error, progress=progress, attempt=1)
    server.on("GetJob", failed.job)
    server.on("ListCheckpoints", checkpoints())
    server.on("WatchJob", [failed])
    code, out, err = lockstep("describe", "j-1")
    assert (code, err) == (0, "")
    for told in (
        "state     FAILED",
        "progress  epoch 1.5/3, step 30 of 60",
        "USER_ERROR (rank 1): division by zero",
        "Trace [red]\n  x/0\N{REPLACEMENT CHARACTER}[2J\n",
        "FAILED      attempt 1   queued",
        "  max_epochs: 3",
    ):
        assert told in out


def test_describe_tells_the_result_of_a_job(server: ScriptedServer, lockstep: Lockstep) -> None:
    done = an_update("SUCCEEDED", (1, "done"), **SUCCEEDED)
    server.on("GetJob", done.job)
    server.on("ListCheckpoints", checkpoints())
    server.on("WatchJob", [done])
    _, out, _ = lockstep("describe", "j-1")
    assert "val_accuracy  0.97" in out
    assert "weights       ab12" in out


def test_describe_tells_of_workers_heals_and_the_newest_checkpoint(server: ScriptedServer, lockstep: Lockstep) -> None:
    spec = JobSpec(name="digits", resources={"workers": 3})
    running = an_update("RUNNING", (1, "healed"), spec=spec, running_workers=2, heals=4, owner="ann")
    server.on("GetJob", running.job)
    server.on("WatchJob", [running])
    server.on("ListCheckpoints", checkpoints(a_checkpoint(400), a_checkpoint(200)))
    _, out, _ = lockstep("describe", "j-1")
    facts = [line.rstrip() for line in out.splitlines()]
    assert "owner       ann" in facts
    assert "workers     2 of 3 workers" in facts
    assert "heals       4" in facts
    assert "checkpoint  step 400, 5.8 KiB, now: /data/j-1/step-000000000400" in facts


def test_describe_tells_all_events_of_a_job_that_goes_on(
    server: ScriptedServer, lockstep: Lockstep, release: threading.Event
) -> None:
    def page(request: Any) -> Any:
        first = request.after_sequence + 1
        events = ((number, f"event {number}") for number in range(first, min(first + 500, 1_201)))
        return [an_update("RUNNING", *events), lambda context: release.wait(timeout=30)]

    server.on("GetJob", a_job("RUNNING"))
    server.on("WatchJob", page)
    server.on("ListCheckpoints", checkpoints())
    _, out, _ = lockstep("describe", "j-1")
    told = [line.rpartition("  ")[2] for line in out.splitlines() if "attempt 1" in line]
    assert told == [f"event {number}" for number in range(1, 1_201)]


def test_describe_tells_how_long_a_job_took_over_all_attempts(server: ScriptedServer, lockstep: Lockstep) -> None:
    now = int(datetime.now(UTC).timestamp())
    times = {
        "create_time": {"seconds": now - 100},
        "start_time": {"seconds": now - 15},
        "end_time": {"seconds": now - 1},
    }
    timeline = {
        "submitted": {"seconds": now - 100},
        "admitted": {"seconds": now - 17},
        "placed": {"seconds": now - 16},
        "first_step": {"seconds": now - 16, "nanos": 400_000},
    }
    done = an_update("SUCCEEDED", (1, "training has begun"), attempt=3, timeline=timeline, **times, **SUCCEEDED)
    done.events[0].time.seconds, done.events[0].state = now - 95, 3  # type: ignore[assignment]
    server.on("GetJob", done.job)
    server.on("ListCheckpoints", checkpoints())
    server.on("WatchJob", [done])
    _, out, _ = lockstep("describe", "j-1")
    facts = dict(line.rstrip().split("  ", 1) for line in out.splitlines()[:12] if "  " in line)
    told = {name: value.strip() for name, value in facts.items()}
    assert told["took"] == "94 s, over 3 attempts"
    assert told["started"] in ("95 s ago", "96 s ago")
    assert told["startup of attempt 3"] == "admitted, placed 1.0 s, first step under 1 ms"
