"""When nodes are swept for what dead workers have printed."""

from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import TaskUnschedulableError
from structlog.testing import capture_logs

from lockstep.workers.launcher import log_sweeps
from lockstep.workers.launcher.log_sweeps import LogSweeps
from tests.support.pool_stage import Make


class Tasks:
    """Stands in for Ray's tasks."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []

    def __call__(self, node_id: str, address: str) -> "Future[int]":
        self.started.append((node_id, address))
        done: Future[int] = Future()
        done.set_result(0)
        return done


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list["Timer"]:
    made: list[Timer] = []

    def make(_: float, function: object, arguments: tuple[str, float]) -> "Timer":
        made.append(Timer(function, arguments))
        return made[-1]

    monkeypatch.setattr(log_sweeps.threading, "Timer", make)
    return made


class Timer:
    """A timer that the test lets run."""

    def __init__(self, function: object, arguments: tuple[str, float]) -> None:
        self.function, self.arguments, self.daemon = function, arguments, False

    def start(self) -> None:
        pass

    def ring(self) -> None:
        assert callable(self.function)
        self.function(*self.arguments)


def test_a_node_is_swept_once_when_it_is_found_and_once_for_workers_that_die_together(timers: list[Timer]) -> None:
    tasks = Tasks()
    sweeps = LogSweeps("here", tasks)
    sweeps.found(["a"])
    assert timers == []  # nobody has said where the lines go
    sweeps.begin("host:1")
    sweeps.found(["a"])
    sweeps.found(["a", "b"])
    sweeps.soon("a")
    early, late = log_sweeps.DELAYS_S
    assert [timer.arguments for timer in timers] == [("a", early), ("a", late), ("b", early), ("b", late)]
    for timer in timers[::2]:
        timer.ring()
    assert tasks.started == [("a", "host:1"), ("b", "host:1")]
    sweeps.soon("a")
    assert [timer.arguments for timer in timers[4:]] == [("a", early)]  # the late one is still to come


def test_a_sweep_that_cannot_begin_harms_nobody(timers: list[Timer]) -> None:
    def fail(node_id: str, address: str) -> object:
        raise RuntimeError("Ray is away")

    sweeps = LogSweeps("here", fail)
    sweeps.begin("host:1")
    sweeps.soon("a")
    timers[0].ring()
    sweeps.soon("a")
    assert len(timers) == 3


def test_of_a_node_that_is_gone_people_are_told_once_and_in_our_words(timers: list[Timer]) -> None:
    class Refusing(Tasks):
        def __call__(self, node_id: str, address: str) -> "Future[int]":
            self.started.append((node_id, address))
            refused: Future[int] = Future()
            refused.set_exception(TaskUnschedulableError("The node specified via NodeAffinitySchedulingStrategy ..."))
            return refused

    tasks = Refusing()
    sweeps = LogSweeps("here", tasks)
    sweeps.begin("host:1")
    sweeps.found(["a", "b"])
    with capture_logs() as told:
        for timer in timers[:2]:  # Ray knows it before the launcher has looked
            timer.ring()
        assert tasks.started == [("a", "host:1")] * 2
        sweeps.found(["b"])
        for _ in range(3):
            sweeps.soon("a")
        for timer in timers[4:]:
            timer.ring()
    assert tasks.started == [("a", "host:1")] * 2
    assert [(entry["event"], entry["node_id"]) for entry in told] == [
        ("the node is gone, and the logs of its workers with it", "a")
    ]


def test_all_sweeps_are_tasks_of_one_function_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(log_sweeps.ray, "remote", made.append)  # each would be kept by Ray for ever
    started: list[Any] = []

    class Task:
        def options(self, **_: Any) -> "Task":
            return self

        def remote(self, *arguments: Any) -> "Task":
            started.append(arguments)
            return self

        def future(self) -> None:
            return None

    monkeypatch.setattr(log_sweeps, "_SWEEP", Task())
    sweeps = LogSweeps("here")
    for node_id in ("ab" * 28, "cd" * 28):
        sweeps._start_task(node_id, "host:1")
    assert len(started) == 2
    assert made == []


@pytest.mark.parametrize("ttl_s", [600.0, 0.0])
@pytest.mark.parametrize("has_left_log", [False, True])
def test_a_node_is_swept_when_a_worker_that_ended_in_order_has_left_lines(
    timers: list[Timer], make: Make, ttl_s: float, has_left_log: bool
) -> None:
    stage = make(ttl_s=ttl_s)
    stage.fleet.log_sweeps.begin("host:1")
    process = stage.take()
    stage.pool.give_back(process, 50, has_left_log=has_left_log)
    assert [timer.arguments[0] for timer in timers] == (["a", "a"] if has_left_log else [])
