"""A process as it was: what one job may have changed does not reach the next."""

import ctypes
import gc
import locale
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

LIBRARY_THREADS = frozenset({"fsspecIO"})
"""Threads that a library starts once for all."""

Setter = Callable[[Any], Any]


class Setting(NamedTuple):
    """One setting of the process: how it is read and how it is written."""

    read: Callable[[], Any]
    write: Setter


def _attribute(owner: Any, name: str) -> Setting:
    return Setting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _contents(get: Callable[[], Any]) -> Setting:
    """A list or a dictionary that stays the same object."""

    def write(value: Any) -> None:
        container = get()
        container.clear()
        (container.update if isinstance(container, dict) else container.extend)(value)

    return Setting(lambda: get().copy(), write)


def _set_deterministic(mode: int) -> None:
    torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)


def _set_environment(wanted: dict[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:  # writing costs a call into C
            os.environ[name] = value


def _hooks() -> list[dict[int, Any]]:
    """The tables of hooks that torch calls for every module."""
    module = torch.nn.modules.module
    return [value for name, value in vars(module).items() if name.startswith("_global_") and isinstance(value, dict)]


def settings() -> dict[str, Setting]:
    """Everything that is put back, by name."""
    backends = torch.backends
    found = {
        "environment": Setting(lambda: dict(os.environ), _set_environment),
        "working directory": Setting(os.getcwd, os.chdir),
        "locale": Setting(
            lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)
        ),
        "sys.path": _contents(lambda: sys.path),
        "sys.stdout": _attribute(sys, "stdout"),
        "sys.stderr": _attribute(sys, "stderr"),
        "warnings": _contents(lambda: warnings.filters),
        "log level": Setting(lambda: logging.root.level, logging.root.setLevel),
        "log handlers": _contents(lambda: logging.root.handlers),
        "random": Setting(random.getstate, random.setstate),
        "numpy.random": Setting(np.random.get_state, np.random.set_state),
        "garbage collection": Setting(gc.get_threshold, lambda value: gc.set_threshold(*value)),
        "recursion limit": Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        "generator": Setting(torch.default_generator.get_state, torch.default_generator.set_state),
        "dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
        "threads": Setting(torch.get_num_threads, torch.set_num_threads),
        "deterministic": Setting(torch.get_deterministic_debug_mode, _set_deterministic),
        "fill memory": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        "matmul precision": Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "matmul tf32": _attribute(backends.cuda.matmul, "allow_tf32"),
        "matmul fp16 sums": _attribute(backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
        "matmul bf16 sums": _attribute(backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        "cudnn": _attribute(backends.cudnn, "enabled"),
        "cudnn benchmark": _attribute(backends.cudnn, "benchmark"),
        "cudnn deterministic": _attribute(backends.cudnn, "deterministic"),
        "cudnn tf32": _attribute(backends.cudnn, "allow_tf32"),
        "anomaly": Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    }
    found |= {f"hooks {number}": _contents(partial(_hooks().__getitem__, number)) for number in range(len(_hooks()))}
    if has_cuda():
        found["cuda generators"] = Setting(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    return found


class CleanSlate:
    """A process's settings as they are now, to be put back after each job.

    What belongs to a thread (its default device, whether it records gradients, autocast) goes with the thread: each job
    runs in a new one.
    """

    def __init__(self) -> None:
        self._settings = settings()
        self._wanted = {name: setting.read() for name, setting in self._settings.items()}
        self._threads = set(threading.enumerate())
        self._is_frozen = False

    def expect_threads(self) -> None:
        """Count the threads that are there as belonging to the process."""
        self._threads |= set(threading.enumerate())

    def put_back(self) -> list[str]:
        """Put all settings back and free memory.

        Returns:
            What could not be put back, in words; a process with any of that must not be used again.
        """
        left = []
        for name, setting in self._settings.items():
            try:
                setting.write(self._wanted[name])
            except Exception as error:  # whatever a job did to it
                left.append(f"{name}: {error}")
        torch.set_flush_denormal(False)
        left += [f"thread {thread.name}" for thread in threading.enumerate() if self._is_strange(thread)]
        free_memory()
        if not self._is_frozen:  # what is imported stays; looking through all of it takes 0.2 s each time
            gc.freeze()
            self._is_frozen = True
        return left

    def _is_strange(self, thread: threading.Thread) -> bool:
        """Whether a job has left a thread behind; Ray's own, which come and go, are no threads of Python's."""
        is_rays = isinstance(thread, threading._DummyThread)
        is_known = thread in self._threads or thread.name in LIBRARY_THREADS
        return not is_rays and not is_known and thread is not threading.current_thread()


def has_cuda() -> bool:
    """Whether this process has used a GPU."""
    return torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def memory_bytes() -> int:
    """Memory of this process that it shares with no other."""
    _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")


def free_memory() -> None:
    """Give memory that nothing refers to back to the system and to the device."""
    gc.collect()
    if has_cuda():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
