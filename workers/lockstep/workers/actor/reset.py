"""A process as it was: what one job may have changed does not reach the next."""

import contextlib
import ctypes
import gc
import locale
import logging
import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
import torch.distributed as dist

from lockstep.workers.engine.compiler import forget_compiled_code

LIBRARY_THREADS = frozenset({"fsspecIO"})
"""Threads that a library starts once for all."""
ATTRIBUTES: dict[ModuleType, str] = {
    sys: "stdin stdout stderr argv excepthook displayhook unraisablehook",
    threading: "excepthook",
    warnings: "showwarning",
    logging: "raiseExceptions",
    torch.nn.modules.module: "_global_is_full_backward_hook",
    torch.utils.deterministic: "fill_uninitialized_memory",
}
"""Attributes that are put back, by whose they are. Those that this version of torch lacks are left out."""
BACKENDS = {
    "cuda.matmul": "allow_tf32 allow_fp16_reduced_precision_reduction allow_bf16_reduced_precision_reduction "
    "allow_fp16_accumulation",
    "cudnn": "enabled benchmark benchmark_limit deterministic allow_tf32",
    "mkldnn": "enabled deterministic",
    "opt_einsum": "enabled strategy",
    "quantized": "engine",
}
"""The same of torch's backends: each of them may choose another way to compute."""
PRECISIONS = [
    "",
    "cuda.matmul",
    *(f"{name}{part}" for name in ("cudnn", "mkldnn") for part in ("", ".matmul", ".conv", ".rnn")),
]
"""Backends with a precision of float32 each."""
KERNELS = "flash", "mem_efficient", "math", "cudnn"
"""Ways to compute attention."""


class Setting(NamedTuple):
    """One setting of the process: how it is read and how it is written."""

    read: Callable[[], Any]
    write: Callable[[Any], Any]

    def put_back(self, wanted: Any) -> None:
        """Write it unless it is as wanted; what cannot be read or compared is written."""
        is_so = False
        with contextlib.suppress(Exception):
            is_so = bool(self.read() == wanted)
        if not is_so:
            self.write(wanted)


def _attributes(label: str, owner: Any, names: str) -> dict[str, Setting]:
    """The attributes that are there of those with these names, by label and name."""
    return {
        f"{label}.{name}": Setting(partial(getattr, owner, name), partial(setattr, owner, name))
        for name in names.split()
        if hasattr(owner, name)
    }


def _items(get: Callable[[], list[Any]]) -> Setting:
    """The items of a list that stays the same object, and that other threads may be looking at."""

    def write(value: list[Any]) -> None:
        get()[:] = value

    return Setting(lambda: list(get()), write)


def _entries(table: Any) -> Setting:
    """The entries of a dictionary likewise."""

    def write(wanted: dict[Any, Any]) -> None:
        for key in set(table) - set(wanted):
            del table[key]
        for key, value in wanted.items():
            if key not in table or table[key] != value:  # writing to the environment costs a call into C
                table[key] = value

    return Setting(lambda: dict(table), write)


def _set_environment(wanted: dict[str, str]) -> None:
    _entries(os.environ).write(wanted)
    time.tzset()


def _set_filters(wanted: list[Any]) -> None:
    warnings.simplefilter("default")  # has the filters looked at again
    warnings.filters[:] = wanted  # type: ignore[index]


def _umask() -> int:
    """The umask; asking the system for it would change it for a moment."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1], 8) for line in lines if line.startswith("Umask:")), 0o022)


def python_settings() -> dict[str, Setting]:
    """What a job may have changed of Python, by name."""
    return {
        "environment": Setting(lambda: dict(os.environ), _set_environment),
        "working directory": Setting(os.getcwd, os.chdir),
        "umask": Setting(_umask, os.umask),
        "locale": Setting(
            lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)
        ),
        "sys.path": _items(lambda: sys.path),
        "sys.meta_path": _items(lambda: sys.meta_path),
        "sys.path_hooks": _items(lambda: sys.path_hooks),
        "warnings": Setting(lambda: list(warnings.filters), _set_filters),
        "log level": Setting(lambda: logging.root.level, logging.root.setLevel),
        "log levels that are off": Setting(lambda: logging.root.manager.disable, logging.disable),
        "log handlers": _items(lambda: logging.root.handlers),
        "log filters": _items(lambda: logging.root.filters),
        "structlog": Setting(structlog.get_config, lambda value: structlog.configure(**value)),
        "random": Setting(random.getstate, random.setstate),
        "numpy.random": Setting(np.random.get_state, np.random.set_state),
        "garbage collection": Setting(gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
        "garbage collection's thresholds": Setting(gc.get_threshold, lambda value: gc.set_threshold(*value)),
        "garbage collection's callbacks": _items(lambda: gc.callbacks),
        "recursion limit": Setting(sys.getrecursionlimit, sys.setrecursionlimit),
        "switch interval": Setting(sys.getswitchinterval, sys.setswitchinterval),
        "stack of threads": Setting(threading.stack_size, threading.stack_size),
        "trace of threads": Setting(threading.gettrace, threading.settrace),
        "profile of threads": Setting(threading.getprofile, threading.setprofile),
    }


def torch_settings() -> dict[str, Setting]:
    """What a job may have changed of torch, by name."""
    cuda, future = torch.backends.cuda, torch.__future__
    optim = import_module("torch.optim.optimizer")  # torch hides it
    found = {
        "generator": Setting(torch.default_generator.get_state, torch.default_generator.set_state),
        "kind of tensors": Setting(torch._C._get_default_device, _set_kind),
        "dtype": Setting(torch.get_default_dtype, torch.set_default_dtype),
        "threads": Setting(torch.get_num_threads, torch.set_num_threads),
        "threads between operations": Setting(torch.get_num_interop_threads, torch.set_num_interop_threads),
        "deterministic": Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        "anomaly": Setting(
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.autograd.set_detect_anomaly(*value),
        ),
        "repeated warnings": Setting(torch.is_warn_always_enabled, torch.set_warn_always),
        "parameters that are replaced": Setting(
            future.get_overwrite_module_params_on_conversion, future.set_overwrite_module_params_on_conversion
        ),
        "parameters that are swapped": Setting(
            future.get_swap_module_params_on_conversion, future.set_swap_module_params_on_conversion
        ),
        "optimizer hooks before": _entries(optim._global_optimizer_pre_hooks),
        "optimizer hooks after": _entries(optim._global_optimizer_post_hooks),
        "nnpack": Setting(torch._C._get_nnpack_enabled, torch.backends.nnpack.set_flags),
        "fast path of attention": Setting(
            torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
        ),
        "linear algebra": Setting(cuda.preferred_linalg_library, cuda.preferred_linalg_library),
        "blas": Setting(cuda.preferred_blas_library, cuda.preferred_blas_library),
        "attention in half precision": Setting(
            cuda.fp16_bf16_reduction_math_sdp_allowed, cuda.allow_fp16_bf16_reduction_math_sdp
        ),
        "order of attention kernels": Setting(torch._C._get_sdp_priority_order, torch._C._set_sdp_priority_order),
        "matmul precision": Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    }
    for name, table in vars(torch.nn.modules.module).items():
        if name.startswith("_global_") and isinstance(table, dict):
            found[name] = _entries(table)
    for kernel in KERNELS:
        found[f"attention {kernel}"] = Setting(
            getattr(cuda, f"{kernel}_sdp_enabled"), getattr(cuda, f"enable_{kernel}_sdp")
        )
    return found


def settings() -> dict[str, Setting]:
    """Everything that is put back, by name."""
    found = python_settings() | torch_settings()
    for module, names in ATTRIBUTES.items():
        found |= _attributes(module.__name__, module, names)
    for backend, names in BACKENDS.items():
        found |= _attributes(backend, attrgetter(backend)(torch.backends), names)
    for backend in PRECISIONS:  # what comes before sets these too
        with contextlib.suppress(AttributeError):
            owner = attrgetter(backend)(torch.backends) if backend else torch.backends
            found |= _attributes(backend or "backends", owner, "fp32_precision")
    return found


class CleanSlate:
    """A process's settings as they are now, to be put back after each job.

    What belongs to a thread (its default device, whether it records gradients, autocast, denormal numbers) goes with
    the thread: each job runs in a new one. What a job has replaced in the code of modules is not seen.
    """

    def __init__(self) -> None:
        self._settings = settings()
        self._wanted = {name: setting.read() for name, setting in self._settings.items()}
        self._seed = torch.default_generator.initial_seed()
        self._threads = set(threading.enumerate())
        self._may_have_children = _has_children()
        self._is_frozen = False

    def expect_threads(self) -> None:
        """Count the threads that are there as belonging to the process."""
        self._threads = set(threading.enumerate())

    def put_back(self) -> list[str]:
        """Put all settings back and free memory.

        Returns:
            What could not be put back, in words; a process with any of that must not be used again.
        """
        left = []
        for name, setting in self._settings.items():
            try:
                setting.put_back(self._wanted[name])
            except Exception as error:  # whatever a job did to it
                left.append(f"{name}: {error}")
        if has_cuda():  # they had not been made yet
            for generator in torch.cuda.default_generators:
                generator.manual_seed(self._seed)
        left += [f"thread {thread.name}" for thread in self._strange_threads()]
        if _has_children() and not self._may_have_children:
            left.append("a child process")
        if dist.is_available() and dist.is_initialized():
            left.append("torch's process group")
        forget_compiled_code()
        free_memory()
        if not self._is_frozen:  # what is imported stays; looking through all of it takes 0.2 s each time
            gc.freeze()
            self._is_frozen = True
        return left

    def _strange_threads(self) -> Iterator[threading.Thread]:
        """Threads that a job has left behind; Ray's own, which come and go, are no threads of Python's."""
        for thread in threading.enumerate():
            is_rays = isinstance(thread, threading._DummyThread)
            is_known = thread in self._threads or thread.name in LIBRARY_THREADS
            if not is_rays and not is_known and thread is not threading.current_thread():
                yield thread


def _set_kind(device: str) -> None:
    torch.set_default_tensor_type("torch.FloatTensor" if device == "cpu" else "torch.cuda.FloatTensor")


def _has_children() -> bool:
    """Whether this process has child processes, ended ones that nobody has asked for among them."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


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
        with contextlib.suppress(AttributeError):  # only the GNU library has it
            ctypes.CDLL(None).malloc_trim(0)
