"""Jobs are found by what a person types, lists stay short, and a shell completes both."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import grpc
import pytest

from lockstep.client import Client, NotFound
from lockstep.v1.job_pb2 import Job
from lockstep.v1.job_service_pb2 import GetJobRequest, ListJobsRequest, ListJobsResponse
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.scripted_server import Refusal, ScriptedServer, a_job

JOBS = [
    a_job("RUNNING", "job-03aa", spec=JobSpec(name="digits")),
    a_job("FAILED", "job-03bb", spec=JobSpec(name="lenet")),
    a_job("SUCCEEDED", "job-04cc", spec=JobSpec(name="digits")),
]


def get(request: GetJobRequest) -> Job | Refusal:
    found = [job for job in JOBS if job.job_id == request.job_id]
    return found[0] if found else Refusal(grpc.StatusCode.NOT_FOUND, f'there is no job "{request.job_id}"')


def list_jobs(request: ListJobsRequest) -> ListJobsResponse:
    """As the server does it."""
    found = [
        job
        for job in JOBS
        if job.job_id.startswith(request.job_id_prefix) and request.name in ("", job.spec.name)
    ]  # fmt: skip
    shown = found[: request.page_size]
    token = "more" if len(found) > len(shown) else ""
    return ListJobsResponse(jobs=shown, total_size=len(found), next_page_token=token)


@pytest.fixture
def jobs(server: ScriptedServer) -> ScriptedServer:
    server.on("GetJob", get)
    server.on("ListJobs", list_jobs)
    return server


@pytest.mark.parametrize("typed", ["job-04cc", "job-04", "lenet"])
def test_a_job_is_found_by_its_id_the_beginning_of_it_and_a_name_that_no_other_has(
    jobs: ScriptedServer, client: Client, typed: str
) -> None:
    assert client.find_job(typed).job_id == {"lenet": "job-03bb"}.get(typed, "job-04cc")
    assert len(jobs.requests["ListJobs"]) == (0 if typed == "job-04cc" else 2)


def test_what_fits_no_job_is_told_in_the_words_of_the_server(jobs: ScriptedServer, client: Client) -> None:
    for typed in ("job-9", "digit", ""):
        with pytest.raises(NotFound, match=f'^there is no job "{typed}"$'):
            client.find_job(typed)


def test_what_fits_more_than_one_job_lists_them(jobs: ScriptedServer, lockstep: Any) -> None:
    assert lockstep("get", "job-03") == (
        4,
        "",
        "lockstep: job-03 may be any of 2 jobs; name one by its id:\n"
        "  job-03aa  digits  running\n"
        "  job-03bb  lenet  failed\n",
    )
    assert "digits may be any of 2 jobs" in lockstep("get", "digits")[2]


def test_of_very_many_that_fit_the_newest_are_listed(server: ScriptedServer, client: Client) -> None:
    server.on("GetJob", get)
    server.on("ListJobs", ListJobsResponse(jobs=[a_job(job_id=f"job-{number:02}") for number in range(30)]))
    with pytest.raises(NotFound, match="any of 30 jobs") as caught:
        client.find_job("job-")
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (7, "  and 25 more")


def test_those_that_fit_are_counted_also_where_there_are_more_than_a_page(
    server: ScriptedServer, client: Client
) -> None:
    def list_jobs(request: ListJobsRequest) -> ListJobsResponse:
        if not request.job_id_prefix:
            return ListJobsResponse(jobs=[a_job(job_id="other", spec=JobSpec(name="job-"))], total_size=1)
        newest = [a_job(job_id=f"job-{number:04}") for number in range(request.page_size)]
        return ListJobsResponse(jobs=newest, total_size=2_345, next_page_token="more")

    server.on("GetJob", get)
    server.on("ListJobs", list_jobs)
    with pytest.raises(NotFound, match=r"any of 2,346 jobs") as caught:
        client.find_job("job-")
    assert str(caught.value).endswith("\n  and 2,341 more")
    assert len(server.requests["ListJobs"]) == 2


def test_a_server_of_an_earlier_version_that_lists_all_jobs_is_not_believed(
    server: ScriptedServer, client: Client
) -> None:
    server.on("GetJob", get)
    server.on("ListJobs", ListJobsResponse(jobs=JOBS))
    assert client.find_job("job-04").job_id == "job-04cc"
    with pytest.raises(NotFound, match="no job"):
        client.find_job("job-9")


def test_a_command_goes_on_with_the_whole_id(jobs: ScriptedServer, lockstep: Any) -> None:
    jobs.on("CancelJob", a_job("CANCELLED", "job-03bb"))
    assert lockstep("cancel", "lenet") == (0, "", "job-03bb is cancelled\n")
    assert jobs.requests["CancelJob"][0].job_id == "job-03bb"


def test_a_list_says_how_many_more_there_are(jobs: ScriptedServer, lockstep: Any) -> None:
    code, out, err = lockstep("ls", "--limit", "2")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["JOB", "job-03aa", "job-03bb"]
    assert err == "and 1 more, which are older; see them with --all or --limit N\n"
    for all_of_them in (["ls"], ["ls", "--all"], ["ls", "-o", "json"]):
        code, out, err = lockstep(*all_of_them)
        assert (code, out.count("job-0"), err) == (0, 3, "")


def test_a_table_asks_for_no_more_than_it_shows_and_a_program_for_all(server: ScriptedServer, lockstep: Any) -> None:
    server.on("ListJobs", ListJobsResponse(jobs=JOBS))
    for command in (["ls"], ["ls", "-n", "7"], ["ls", "-a"], ["ls", "-o", "json"], ["ls", "-o", "json", "-n", "7"]):
        lockstep(*command)
    assert [request.page_size for request in server.requests["ListJobs"]] == [50, 7, 1000, 1000, 7]


def test_a_limit_and_all_are_not_taken_together(jobs: ScriptedServer, lockstep: Any) -> None:
    code, _, err = lockstep("ls", "--all", "--limit", "3")
    assert code == 2
    assert "cannot be given together with --all" in err


def test_pages_are_read_up_to_the_limit(server: ScriptedServer, client: Client) -> None:
    pages = [ListJobsResponse(jobs=JOBS[:2], next_page_token="t"), ListJobsResponse(jobs=JOBS[2:], next_page_token="u")]
    server.on("ListJobs", *pages)
    assert [job.job_id for job in client.list_jobs(limit=3)] == ["job-03aa", "job-03bb", "job-04cc"]
    assert [request.page_size for request in server.requests["ListJobs"]] == [3, 1]


def completions(server: ScriptedServer | None, line: str) -> set[str]:
    """What bash would be offered at the end of a line."""
    words = line.split(" ")
    target = server.target if server is not None else "127.0.0.1:1"
    asked = {"_LOCKSTEP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", "from lockstep.client.cli import main; main()"],
        env=os.environ | asked | {"LOCKSTEP_TARGET": target},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_a_shell_completes_commands_options_states_and_ids(jobs: ScriptedServer) -> None:
    assert completions(jobs, "lockstep des") == {"describe"}
    assert "--dry-run" in completions(jobs, "lockstep submit --d")
    assert completions(jobs, "lockstep ls --state p") == {"pausing", "paused"}
    assert completions(jobs, "lockstep describe job-03") == {"job-03aa", "job-03bb"}


def test_a_shell_completes_the_ids_of_jobs_that_are_not_among_the_newest(server: ScriptedServer) -> None:
    newer = [a_job(job_id=f"job-1{number:03}") for number in range(200)]
    server.on(
        "ListJobs",
        lambda request: ListJobsResponse(
            jobs=[job for job in [*newer, *JOBS] if job.job_id.startswith(request.job_id_prefix)][: request.page_size]
        ),
    )
    assert completions(server, "lockstep describe job-04") == {"job-04cc"}


def test_without_a_server_ids_are_not_completed_and_nothing_is_said() -> None:
    assert completions(None, "lockstep describe ") == set()


def test_the_completion_of_a_shell_can_be_shown(lockstep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # who runs tests need not be a shell
    code, out, err = lockstep("--show-completion", "bash")
    assert (code, err) == (0, "")
    assert "_LOCKSTEP_COMPLETE=complete_bash" in out
