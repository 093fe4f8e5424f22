"""Processes for tests of ranks: they fork from one that has imported what takes seconds, once."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

SLOW_IMPORTS = ["torch", "lockstep.workers.training"]
TIMEOUT_S = 60


def forking_context() -> ForkServerContext:
    """Where processes start in some milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(SLOW_IMPORTS)
    return context


def in_a_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a process that has done nothing before.

    Raises:
        AssertionError: it raised there, with its traceback, or the process died.
    """
    context = forking_context()
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, args))
    process.start()
    theirs.close()
    try:
        assert ours.poll(TIMEOUT_S), f"{function.__name__} hangs"
        value, failure = ours.recv()
    except EOFError:
        value, failure = None, "it died"
    finally:
        ours.close()
        process.kill()
        process.join()
        process.close()
    assert not failure, failure
    return value


def run_as_main(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `python -m module` prints and returns, without the time that its imports take."""
    code, stdout, stderr = in_a_fresh_process(_run_as_main, module, arguments)
    return subprocess.CompletedProcess([module, *arguments], code, stdout, stderr)


def _run_as_main(module: str, arguments: tuple[str, ...]) -> tuple[Any, str, str]:
    sys.argv[1:] = arguments
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stdout, tempfile.TemporaryFile("w+") as stderr:
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        code: Any = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        for file in (stdout, stderr):
            file.seek(0)
        return code, stdout.read(), stderr.read()


def _call(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        outcome = function(*args), ""
    except BaseException:
        outcome = None, traceback.format_exc()
    connection.send(outcome)
