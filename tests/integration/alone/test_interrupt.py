"""What an interrupted run of these tests leaves behind: nothing."""

import os
import signal
import subprocess
import sys
import threading
import uuid

import psutil
import pytest

MARK = "LOCKSTEP_INTERRUPT_MARK"
A_TEST = "tests/integration/test_jobs.py::test_every_number_of_workers_gives_the_curve_of_the_engine_alone"


def marked(mark: str) -> list[psutil.Process]:
    """The living processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_no_process(number: signal.Signals) -> None:
    mark = uuid.uuid4().hex
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", A_TEST],
        env=os.environ | {MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pause = threading.Event()  # other processes give no event to wait for
    while not any("ray::Worker" in " ".join(process.cmdline()) for process in marked(mark)):
        assert run.poll() is None, "ended by itself"
        pause.wait(0.1)
    run.send_signal(number)
    run.send_signal(number)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == pytest.ExitCode.INTERRUPTED, output
    assert marked(mark) == []
