"""A process that does one job after another: whatever the first has changed, the second does not see."""

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lockstep.workers.actor.reset import CleanSlate, free_memory, memory_bytes, settings
from lockstep.workers.engine.compiler import fix_compiler
from lockstep.workers.training import train_once
from tests.support.processes import in_a_fresh_process
from tests.support.vandal import Curve, curves_of_jobs, in_a_thread, vandalise


def after_a_vandal(is_put_back: bool) -> tuple[list[str], list[Curve] | str]:
    """What cannot be put back after a vandal, and the curves of the jobs after it, or why there is none."""
    slate = CleanSlate()
    left: list[str] = []

    def vandalise_and_go() -> None:
        slate.expect_threads()
        vandalise()
        if is_put_back:
            left.extend(slate.put_back())

    in_a_thread(vandalise_and_go)
    try:
        return left, in_a_thread(curves_of_jobs)
    except IndexError:
        return left, "it has failed"


def test_a_job_after_one_that_changes_everything_has_the_curve_that_it_has_in_a_fresh_process() -> None:
    fresh = in_a_fresh_process(curves_of_jobs)
    assert in_a_fresh_process(in_a_thread, curves_of_jobs) == fresh
    assert in_a_fresh_process(after_a_vandal, True) == ([], fresh)


def warm_up_and_train() -> list[Curve]:
    slate = CleanSlate()
    train_once(gpus=0.0)
    assert slate.put_back() == []
    return in_a_thread(curves_of_jobs)


def test_a_job_in_a_process_that_was_warmed_up_has_that_curve_too() -> None:
    assert in_a_fresh_process(warm_up_and_train) == in_a_fresh_process(curves_of_jobs)


def test_the_vandal_of_these_tests_does_harm() -> None:
    _, curves = in_a_fresh_process(after_a_vandal, False)
    fresh = in_a_fresh_process(curves_of_jobs)
    assert curves == "it has failed" or all(other != curve for other, curve in zip(curves, fresh, strict=True))


def other_than(name: str, value: Any) -> Any:
    """Another value that a setting may have."""
    odd: dict[str, Any] = {
        "environment": {"ODD": "1"},
        "working directory": "/",
        "locale": "C",
        "structlog": {**value, "cache_logger_on_first_use": True} if name == "structlog" else None,
        "random": random.Random(1).getstate(),
        "numpy.random": np.random.RandomState(1).get_state(),
        "generator": torch.Generator().manual_seed(1).get_state(),
        "garbage collection's thresholds": (1, 2, 3),
        "stack of threads": 1 << 20,
        "dtype": torch.float64,
        "deterministic": 2,
        "anomaly": (True, False),
        "order of attention kernels": [0, 1, 2, 3, 4],
        "matmul precision": "medium",
        "quantized.engine": "qnnpack",
        "opt_einsum.strategy": "greedy",
    }
    if odd.get(name) is not None:
        return odd[name]
    if name.endswith("fp32_precision"):
        return "bf16" if name.startswith("mkldnn") else "tf32" if value != "tf32" else "ieee"
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return 2 * value
        case list():
            return [*value, print]
        case dict():
            return {**value, 1: print}
        case _:
            return print


NOT_BY_ITSELF = {
    "kind of tensors",  # others need a GPU
    "linear algebra",
    "blas",
    "cudnn.benchmark_limit",
    "opt_einsum.enabled",  # needs a library
    "opt_einsum.strategy",
    "locale",
    "threads between operations",  # see below
    "cuda.matmul.allow_tf32",  # these follow from others
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
}


def shown(value: Any) -> str:
    return repr(value.tolist() if isinstance(value, Tensor) else value)


def change_each_and_put_all_back() -> tuple[list[str], list[str], list[str]]:
    """Which settings were not changed, which were not put back, and what the slate says of that."""
    slate, known = CleanSlate(), settings()
    before = {name: shown(setting.read()) for name, setting in known.items()}
    unchanged = []
    for name, setting in known.items():
        if name not in NOT_BY_ITSELF:
            with contextlib.suppress(RuntimeError):  # reading may say that precisions contradict each other
                setting.write(other_than(name, setting.read()))
                if shown(setting.read()) == before[name]:
                    unchanged.append(name)
    left = slate.put_back()
    return unchanged, [name for name, setting in known.items() if shown(setting.read()) != before[name]], left


def test_each_setting_is_put_back() -> None:
    assert in_a_fresh_process(change_each_and_put_all_back) == ([], [], [])


def leave_a_thread() -> list[list[str]]:
    slate, may_end = CleanSlate(), threading.Event()

    def start_one() -> list[str]:
        slate.expect_threads()
        threading.Thread(target=may_end.wait, name="lingering", daemon=True).start()
        return slate.put_back()

    left = in_a_thread(start_one)
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "lingering":
            thread.join()
    return [left, slate.put_back()]


def test_a_thread_that_a_job_has_left_is_told() -> None:
    assert in_a_fresh_process(leave_a_thread) == [["thread lingering"], []]


def leave_a_child() -> list[list[str]]:
    slate = CleanSlate()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    told = [slate.put_back()]
    child.communicate(b"\n")
    return [*told, slate.put_back()]


def test_a_child_process_that_a_job_has_left_is_told() -> None:
    assert in_a_fresh_process(leave_a_child) == [["a child process"], []]


def leave_a_process_group() -> list[list[str]]:
    slate = CleanSlate()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    told = [slate.put_back()]
    dist.destroy_process_group()
    return [*told, slate.put_back()]


def test_a_process_group_that_a_job_has_left_is_told() -> None:
    assert "torch's process group" in in_a_fresh_process(leave_a_process_group)[0]


def change_what_cannot_be_changed_back() -> list[str]:
    slate = CleanSlate()
    torch.set_num_interop_threads(torch.get_num_interop_threads() + 1)
    torch.backends.disable_global_flags()
    torch._C._set_mkldnn_enabled(False)
    return slate.put_back()


def test_what_cannot_be_put_back_is_told() -> None:
    left = in_a_fresh_process(change_what_cannot_be_changed_back)
    assert [words.split(":")[0] for words in left] == ["threads between operations", "mkldnn.enabled"]


def lose_the_working_directory() -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        slate = CleanSlate()
        os.chdir("/")
    return slate.put_back()


def test_a_working_directory_that_is_gone_is_told() -> None:
    [words] = in_a_fresh_process(lose_the_working_directory)
    assert words.startswith("working directory: ")


class Circle:
    """Something that only the garbage collector frees."""

    def __init__(self) -> None:
        self.itself = self
        self.content = torch.ones(8_000_000)


def keep_circles() -> tuple[list[bool], int]:
    """Whether what each of three jobs leaves is freed, and by how much memory has grown from the second on."""
    slate = CleanSlate()
    slate.put_back()
    freed, memory = [], []
    for _ in range(3):
        garbage = weakref.ref(Circle())
        slate.put_back()
        freed.append(garbage() is None)
        memory.append(memory_bytes())
    return freed, memory[-1] - memory[0]


def test_what_a_job_leaves_in_memory_is_freed() -> None:
    freed, growth_bytes = in_a_fresh_process(keep_circles)
    assert freed == [True] * 3
    assert growth_bytes < 4_000_000


def train_many_times() -> tuple[int, int, int]:
    """By how much threads, open files and memory have grown after many jobs."""
    slate = CleanSlate()

    def job() -> None:
        slate.expect_threads()
        curves_of_jobs()
        assert slate.put_back() == []

    def counts() -> tuple[int, int, int]:
        free_memory()
        return len(list(Path("/proc/self/task").iterdir())), len(list(Path("/proc/self/fd").iterdir())), memory_bytes()

    for _ in range(2):
        in_a_thread(job)
    before = counts()
    for _ in range(5):
        in_a_thread(job)
    after = counts()
    return after[0] - before[0], after[1] - before[1], after[2] - before[2]


def test_many_jobs_leave_no_more_than_a_few() -> None:
    threads, files, growth_bytes = in_a_fresh_process(train_many_times)
    assert files == 0
    assert threads <= 3, "those of a pool may not have ended yet"
    assert growth_bytes < 8_000_000


def forget_threads() -> bool:
    slate = CleanSlate()
    seen = []

    def job() -> None:
        seen.append(weakref.ref(threading.current_thread()))
        slate.expect_threads()

    for _ in range(2):
        in_a_thread(job)
    return seen[0]() is None


def test_the_threads_of_jobs_before_are_forgotten() -> None:
    assert in_a_fresh_process(forget_threads)


def compile_in_two_jobs(spoil: Callable[[Callable[[Tensor], Tensor]], None]) -> list[tuple[int, int]]:
    """How often a function was compiled and run in each of two jobs; the first does something to it at its end."""
    compiled: list[str] = []

    def counted(graph: Any, inputs: list[Any]) -> Any:
        compiled.append("compiled")
        return lambda *args: (compiled.append("run"), graph.forward(*args))[1]  # type: ignore[func-returns-value]

    shared = torch.compile(lambda inputs: inputs.sin() + 1, backend=counted)
    slate, counts = CleanSlate(), []

    def job() -> None:
        slate.expect_threads()
        fix_compiler()
        compiled.clear()
        for size in (2, 3):
            shared(torch.ones(size))
        counts.append((compiled.count("compiled"), compiled.count("run")))
        if len(counts) == 1:
            spoil(shared)
        assert slate.put_back() == []

    for _ in range(2):
        in_a_thread(job)
    return counts


def look_on(shared: Callable[[Tensor], Tensor]) -> None:
    with FlopCounterMode(display=False):
        shared(torch.ones(100))


def turn_off(shared: Callable[[Tensor], Tensor]) -> None:
    torch.compiler.set_stance("force_eager")


def go(shared: Callable[[Tensor], Tensor]) -> None:
    """Leave it as it is: the shapes that were compiled count for the limit on them."""


@pytest.mark.parametrize("spoil", [look_on, turn_off, go])
def test_code_that_a_job_has_compiled_or_spoilt_is_compiled_anew_in_the_next(spoil: Callable[..., None]) -> None:
    first, second = in_a_fresh_process(compile_in_two_jobs, spoil)
    assert first == second == (2, 2)
