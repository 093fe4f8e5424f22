"""How idle processes are looked after, what is told of all, and how a launcher takes them over."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from lockstep.v1.internal_service_pb2 import StartGang, WorkerProcess
from lockstep.v1.launcher_pb2 import LauncherOptions, LauncherSettings
from lockstep.workers.calls import Description
from lockstep.workers.engine import ENGINE_VERSION
from lockstep.workers.launcher import pool as pool_module
from lockstep.workers.launcher.launcher import Launcher, Lifeline
from lockstep.workers.launcher.pool import SILENT_S
from tests.support.played_fleet import WAIT_S, PlayedActor, PlayedFleet
from tests.support.pool_stage import TTL_S, Clock, Make, PoolStage


def test_an_idle_one_is_asked_again_and_again(stage: PoolStage) -> None:
    process = stage.idle()
    assert process.actor.asked[0][:2] == ("rest", ("job-0/1/0", 0.0))
    process.actor.answers(memory_bytes=300, data_bytes=20)
    stage.pool.hear(WAIT_S)
    assert process.actor.asked[0][:2] == ("rest", ("",))
    [message] = stage.messages()
    assert (message.memory_bytes, message.data_bytes, message.pid) == (300, 20, 7)
    told = stage.told
    process.actor.answers(memory_bytes=300, data_bytes=20)
    stage.pool.hear(WAIT_S)
    assert stage.told == told, "nothing has changed"
    process.actor.answers(memory_bytes=200, data_bytes=20)
    stage.pool.hear(WAIT_S)
    assert stage.told == told + 1


def test_an_idle_one_that_dies_leaves_and_what_it_held_is_free(stage: PoolStage) -> None:
    process = stage.idle()
    process.actor.dies()
    stage.pool.hear(WAIT_S)
    assert process.is_ended
    assert stage.messages() == []
    assert stage.fleet.room() == {"a": (4.0, 0.0)}
    assert stage.take() is not process


def test_an_idle_one_that_does_not_answer_is_ended(stage: PoolStage) -> None:
    process = stage.idle()
    stage.look(SILENT_S)
    assert not process.is_ended
    stage.look(0.1)
    assert bool(process.is_ended)
    assert stage.fleet.room() == {"a": (4.0, 0.0)}


def test_one_that_cannot_be_reached_is_asked_again_but_not_for_ever(stage: PoolStage) -> None:
    process = stage.idle()
    process.actor.fails(ActorUnavailableError("the network is broken", None))
    stage.pool.hear(WAIT_S)
    process.actor.wait_until_asked()
    assert process.actor.asked[0][:2] == ("rest", ("job-0/1/0", 0.0))
    assert not process.is_ended
    stage.passes(SILENT_S)
    process.actor.fails(ActorUnavailableError("the network is broken", None))
    stage.pool.hear(WAIT_S)
    process.actor.wait_until_asked()
    stage.look(0.1)
    assert process.is_ended


def test_one_that_was_taken_meanwhile_is_not_asked_again(stage: PoolStage, monkeypatch: pytest.MonkeyPatch) -> None:
    timers: list[Callable[[], None]] = []

    class Timer:
        def __init__(self, after_s: float, call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
            timers.append(lambda: call(*arguments))

        def start(self) -> None:
            pass

    monkeypatch.setattr(pool_module.threading, "Timer", Timer)
    process = stage.idle()
    process.actor.fails(ActorUnavailableError("the network is broken", None))
    stage.pool.hear(WAIT_S)
    stage.take()
    timers[0]()
    assert process.actor.asked == []


def test_an_answer_to_an_earlier_question_does_not_end_a_process_that_works(stage: PoolStage) -> None:
    process = stage.idle()
    question = process.actor.asked.pop(0)
    assert stage.take() is process
    question.answer.set_exception(RuntimeError("the worker has failed"))
    stage.pool.hear(WAIT_S)
    assert not process.is_ended


def test_an_answer_waits_for_nobody_who_waits_for_ray(stage: PoolStage) -> None:
    process = stage.idle()
    has_answered = threading.Event()

    def kill(actor: PlayedActor) -> None:
        """End an actor as Ray does, whose thread first tells of calls that have failed."""
        threading.Thread(target=lambda: (actor.dies(), has_answered.set())).start()  # type: ignore[func-returns-value]
        assert has_answered.wait(WAIT_S)

    stage.fleet.kill = kill  # type: ignore[method-assign]
    stage.take(cpus=4.0)
    assert process.is_ended


def test_processes_are_told_as_they_are(make: Make) -> None:
    stage = make(a=(8.0, 2.0))
    working = stage.take(gpus=1)
    told = stage.told
    stage.pool.is_up(working, 42, ("1",))
    assert stage.told == told + 1
    idle = stage.idle(owner="bob", cpus=2.5)
    first, second = stage.messages()
    assert first == WorkerProcess(
        node_id="a", pid=42, cpus=1.0, gpus=1.0, owner="ann", job_id="job-0", attempt=1, number=0, gpu_ids=["1"]
    )
    assert second.idle_since.ToMicroseconds() == int(1e6 * (idle.idle_since or 0.0))
    second.ClearField("idle_since")
    assert second == WorkerProcess(node_id="a", cpus=2.5, owner="bob", is_warm=True, memory_bytes=50)


# A launcher that takes over.


def launcher_on(fleet: PlayedFleet) -> Launcher:
    settings = LauncherSettings(epoch=1, options=LauncherOptions(warm_ttl_s=TTL_S))
    return Launcher(settings, fleet, Lifeline())


def test_a_launcher_puts_the_workers_of_the_one_before_where_they_belong(clock: Clock) -> None:
    fleet = PlayedFleet({"a": (9.0, 0.0)})
    order = StartGang(job_id="job-1", attempt=2, owner="ann")
    idle = Description(ENGINE_VERSION, 1.0, 0.0, "ann", "a", 11)
    fresh = idle._replace(owner=None, pid=12)
    old = idle._replace(version="0")
    working = idle._replace(
        pid=13, order_bytes=order.SerializeToString(), number=3, generation=1, members=1, address="x", since=1
    )
    working = working._replace(gpu_ids=("0", "1"))
    fleet.left = [idle, fresh, old, working, None]
    launcher = launcher_on(fleet)
    [attempt] = launcher._take_over()
    assert [actor.is_killed for actor in fleet.actors] == [False, False, True, False, True]
    assert [actor.asked[0][:2] for actor in fleet.actors[:2]] == [("rest", ("", 0.0))] * 2
    told = {message.pid: message for message in launcher._pool.processes()}
    assert [told[pid].HasField("idle_since") for pid in (11, 12, 13)] == [True, True, False]
    assert (told[13].job_id, told[13].attempt, told[13].number, told[13].owner) == ("job-1", 2, 3, "ann")
    assert (list(told[13].gpu_ids), list(told[11].gpu_ids)) == (["0", "1"], [])
    assert (told[11].is_warm, told[11].owner, told[12].HasField("owner")) == (True, "ann", False)
    assert fleet.room() == {"a": (6.0, 0.0)}
    assert attempt.inventory().running_workers == 1
    taken = launcher._pool.take(StartGang(job_id="job-2", attempt=1, owner="bob", spec=one_cpu()), "a", 0)
    assert taken.pid == 12, "the only one that has worked for nobody else"


def one_cpu() -> Any:
    order = StartGang()
    order.spec.resources.cpus_per_worker = 1.0
    return order.spec


def test_processes_are_told_once_and_before_what_is_told_after(clock: Clock) -> None:
    fleet = PlayedFleet({"a": (9.0, 0.0)})
    launcher = launcher_on(fleet)
    order = StartGang(job_id="job-1", attempt=1, owner="ann", spec=one_cpu())
    for number in range(3):
        launcher._pool.take(order, "a", number)
    launcher._facts.put(None)
    [fact] = launcher._tell()
    assert len(fact.processes.processes) == 3
