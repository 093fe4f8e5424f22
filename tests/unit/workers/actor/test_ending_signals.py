"""Signals that end a process: what a worker that was started with them blocked does with them, in a real process."""

import signal
import subprocess
import sys

import pytest

from lockstep.workers.actor.ending_signals import ENDING

WORKER = """
import os, signal, subprocess, sys, threading, time
from lockstep.workers.actor.ending_signals import heed_in_children_only, start_children_as_usual
heed_in_children_only()
ended = []
def train():
    start_children_as_usual()
    executed = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    executed.terminate()
    ended.append(executed.wait())
    told, tell = os.pipe()
    forked = os.fork()
    if not forked:
        os.write(tell, b".")
        while True:
            time.sleep(0.01)
    os.read(told, 1)  # before it runs Python forgets the signals that come to a fork
    os.kill(forked, signal.SIGTERM)
    ended.append(os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]))
thread = threading.Thread(target=train)
thread.start()
thread.join()
print(ended, flush=True)
for line in sys.stdin:
    print("goes on", flush=True)
"""


@pytest.mark.parametrize("number", sorted(ENDING))
def test_a_worker_outlives_what_ends_others_and_what_it_starts_does_not(number: signal.Signals) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == f"{[-signal.SIGTERM] * 2}\n"
        worker.send_signal(number)
        worker.stdin.write("\n")
        worker.stdin.flush()
        assert worker.stdout.readline() == "goes on\n"
        worker.stdin.close()
        assert worker.wait() == 0
