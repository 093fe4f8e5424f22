"""Child processes: waiting for them without polling, finding and ending those of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from lockstep.server.process.timeouts import done_within

# What ends a process that does not say otherwise. A supervisor sends one to all processes of a service at once, and a
# terminal to all of its own; how a server ends is its coordinator's to decide.
ENDING_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


@contextlib.contextmanager
def ending_signals_blocked() -> Iterator[None]:
    """Have processes that this thread starts meanwhile, and all that they start, not take any of ENDING_SIGNALS.

    A mask is inherited where a handler is not, and holds from the first moment.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def wait_until_dead(pid: int) -> None:
    """Return when the process has ended; it need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def died_within(pid: int, timeout_s: float) -> bool:
    """Wait for a process to end, for a while."""
    return await done_within(wait_until_dead(pid), timeout_s)


def command_line(pid: int) -> list[str]:
    """Return the arguments of a process; none when it is gone or a zombie."""
    try:
        return [part.decode("utf-8", "replace") for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment that a process of our user was started with; none when it is gone or another's."""
    try:
        pairs = [os.fsdecode(pair).partition("=") for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    except OSError:
        return {}
    return {name: value for name, _, value in pairs if name}


def pids_that_name(mark: str) -> list[int]:
    """Find our user's processes whose command line or open files hold `mark`, which must be unique to what we started.

    Both are looked at, because some of Ray's processes write a title over their command line.
    """
    assert len(mark) >= 12, "a short mark could be in the command line of somebody else's process"
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            pid = int(entry.name)
            with contextlib.suppress(OSError):
                is_ours = entry.stat().st_uid == os.getuid()
                if is_ours and any(mark in part for part in (*command_line(pid), *_open_files(entry))):
                    pids.append(pid)
    return pids


def pids_of_session(leader: int) -> list[int]:
    """Find the living processes of the session that a process began."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == leader and command_line(int(entry.name))[:1] not in ([], [""]):
                    found.append(int(entry.name))
    return found


def _open_files(process: Path) -> list[str]:
    """Return the paths of the files that a process in /proc has open."""
    paths = []
    for link in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            paths.append(str(link.readlink()))
    return paths


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to one process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def free_port() -> int:
    """Return a TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def port_answers(host: str, port: int) -> bool:
    """Say whether somebody listens there."""
    try:
        async with asyncio.timeout(2):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
