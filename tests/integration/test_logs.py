"""What workers print, on a real Ray: live, after the end, and of a worker that was killed."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep.client import Client, Job
from tests.integration.conftest import Server, endless, quick, wait_for_step


def spools_of(server: Server, job: Job) -> dict[int, Path]:
    """What the two workers of a job print into, by their pids."""
    outputs = {worker.pid: Path(f"/proc/{worker.pid}/fd/1").readlink() for worker in server.workers()}
    spools = {pid: path for pid, path in outputs.items() if job.job_id in path.name}
    assert len(spools) == 2
    return spools


def say(spool: Path, text: str) -> None:
    """Print as a worker does."""
    with spool.open("a") as file:
        file.write(f"{text}\n")


def test_the_log_of_every_rank_is_told_live_and_again_after_the_end(client: Client) -> None:
    job = client.submit_job(quick(2))
    live = list(job.logs(follow=True))
    assert str(job.refresh().state) == "SUCCEEDED"
    assert list(job.logs()) == live
    for rank in (0, 1):
        texts = [line.text for line in job.logs(rank=rank)]
        assert texts[0] == f"INFO joined as rank {rank} of 2"
        assert texts[-1].endswith(job.result.weights_digest if job.result else "?")
    before = [line.text for line in live if line.rank is None]
    assert len(before) == 2
    assert all(text.startswith("INFO read 1437 training and 360 validation examples") for text in before)


def test_a_killed_worker_leaves_its_last_words_and_the_log_goes_on(server: Server, client: Client) -> None:
    job = wait_for_step(client.submit_job(endless(2)), 5)
    pid, spool = spools_of(server, job).popitem()
    os.kill(pid, signal.SIGSTOP)  # it cannot deliver what comes now
    say(spool, "the last words")
    os.kill(pid, signal.SIGKILL)
    missing = {"the last words", "training goes on, healed", "joined as rank 1 of 2"}
    seen = []
    for line in job.logs(follow=True):
        seen.append(line.text)
        healed = next((number for number, text in enumerate(seen) if "goes on, healed" in text), len(seen))
        missing = {words for words in missing if not any(words in text for text in seen)}
        if not missing and any("joined as rank 1 of 2" in text for text in seen[healed:]):
            break
    assert not missing
    job.cancel()
    assert list(job.logs(follow=True))[-1].text.startswith("INFO stopped")
    server.wait_until(lambda: not list(spool.parent.glob(f"{job.job_id}.*")))


@pytest.mark.exhaustive
def test_what_is_printed_while_the_server_is_away_comes_later_once(make_server: Callable[..., Server]) -> None:
    server = make_server("--num-cpus", "2").start()
    with server.client() as client:
        job = wait_for_step(client.submit_job(endless(2)), 5)
    spools = spools_of(server, job)
    server.kill()
    for pid, spool in spools.items():
        say(spool, f"{pid} is alone")
    os.kill(min(spools), signal.SIGKILL)
    server.start()
    with server.client() as client:
        job = client.get_job(job.job_id)
        missing = {f"{pid} is alone" for pid in spools}
        for line in job.logs(follow=True):
            missing.discard(line.text)
            if not missing:
                break
        job.cancel()
        lines = [line.text for line in job.logs(follow=True)]
    assert [lines.count(f"{pid} is alone") for pid in spools] == [1, 1]
    assert not any("lines were dropped" in line for line in lines)
