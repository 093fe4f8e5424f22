"""Real processes that are stopped for a while and go on, as after a snapshot of their machine."""

import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path


def stop_and_go_on(command: Sequence[str], stopped_s: float) -> list[str]:
    """What a process says that is stopped for a while, whenever it has said "ready", and goes on."""
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == "ready\n":
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(stopped_s)
                    process.send_signal(signal.SIGCONT)
                else:
                    said.append(line.strip())
        finally:
            process.kill()
    return said
