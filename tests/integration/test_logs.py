"""What workers print, on a real Ray: live, after the end, and of a worker that was killed."""

import os
import signal
from pathlib import Path

from lockstep.client import Client
from tests.integration.conftest import Server, endless, quick, wait_for_step


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
    spools = {
        worker.pid: path
        for worker in server.workers()
        if job.job_id in str(path := Path(f"/proc/{worker.pid}/fd/1").readlink())
    }
    assert len(spools) == 2
    pid, spool = spools.popitem()
    os.kill(pid, signal.SIGSTOP)  # it cannot deliver what comes now
    with spool.open("a") as file:
        file.write("the last words\n")
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
