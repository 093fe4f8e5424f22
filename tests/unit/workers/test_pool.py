"""Which processes are reused, which are kept warm, and which make room."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from lockstep.v1.internal_service_pb2 import StartGang, WorkerProcess
from lockstep.workers import pool as pool_module
from lockstep.workers.engine import ENGINE_VERSION
from lockstep.workers.fleet import Process
from lockstep.workers.launcher import Config, Launcher, Lifeline
from lockstep.workers.pool import QUIET_S, SILENT_S, SPARE_RETRY_S, WARM_UP_S, Pool, Warmth
from lockstep.workers.worker import Description
from tests.unit.workers.played_fleet import WAIT_S, PlayedActor, PlayedFleet

TTL_S = 600.0


class Clock:
    """The time, in place of the module `time`; it passes when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1e9

    def time(self) -> float:
        return self.now_s

    monotonic = time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "ASK_AGAIN_AFTER_S", 0.0)
    return clock


class Stage:
    """A pool on a fleet of one or more nodes."""

    def __init__(self, clock: Clock, ttl_s: float = TTL_S, spares: int = 0, **usable: Any) -> None:
        self.clock = clock
        self.fleet = PlayedFleet(usable or {"a": (4.0, 0.0)})
        self.told = 0
        self.pool = Pool(self.fleet, Warmth(ttl_s, spares), self._count)
        self._numbers = 0

    def _count(self) -> None:
        self.told += 1

    def take(self, node: str = "a", owner: str = "ann", cpus: float = 1.0, gpus: int = 0, **how: bool) -> Process:
        """Take a process for a worker of a job of its own."""
        self.pool.hear(0)
        self.passes(0.001)
        order = StartGang(job_id=f"job-{self._numbers}", attempt=1, owner=owner)
        self._numbers += 1
        order.spec.resources.cpus_per_worker, order.spec.resources.gpus_per_worker = cpus, gpus
        return self.pool.take(order, node, 0, **how)

    def idle(self, *args: Any, **options: Any) -> Process:
        """A process that has worked and waits."""
        process = self.take(*args, **options)
        self.pool.give_back(process, 50)
        return process

    def idle_ones(self, count: int, **options: Any) -> list[Process]:
        """Different ones, the one that has waited for longest first."""
        processes = [self.take(**options) for _ in range(count)]
        for process in processes:
            self.passes(0.001)
            self.pool.give_back(process, 50)
        return processes

    def passes(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def look(self, after_s: float = 0.0) -> None:
        """Look after the idle ones."""
        self.pool.hear(0)
        self.passes(after_s)
        self.pool.look_after()

    def spare(self) -> PlayedActor:
        """The newest actor, which was made without an order."""
        actor = self.fleet.actors[-1]
        assert actor.asked[0].method == "warm_up"
        return actor

    def messages(self) -> list[WorkerProcess]:
        self.pool.hear(0)
        return self.pool.processes()


Make = Callable[..., Stage]


@pytest.fixture
def make(clock: Clock) -> Make:
    return lambda **options: Stage(clock, **options)


@pytest.fixture
def stage(make: Make) -> Stage:
    return make()


# Reuse.


def test_a_process_that_was_given_back_is_taken_again(stage: Stage) -> None:
    first = stage.idle()
    assert not first.is_reused
    again = stage.take()
    assert again is first
    assert (again.is_reused, again.is_warm, again.idle_since, again.assignment) == (True, True, None, "job-1/1/0")
    assert stage.take() is not first


@pytest.mark.parametrize(
    "other", [{"owner": "bob"}, {"cpus": 2.0}, {"gpus": 1}, {"node": "b"}, {"fresh": True}], ids=str
)
def test_another_owner_shape_or_node_gets_a_new_process(make: Make, other: dict[str, Any]) -> None:
    stage = make(a=(9.0, 9.0), b=(9.0, 9.0))
    first = stage.idle()
    assert stage.take(**other) is not first
    assert not first.is_ended, "there is room for both"
    assert stage.take() is first


def test_a_process_that_has_worked_for_nobody_goes_to_anybody_and_then_belongs_to_its_owner(make: Make) -> None:
    stage = make(spares=1)
    stage.look(QUIET_S)
    stage.spare().answers()
    spare = stage.take(owner="bob")
    assert spare.actor is stage.fleet.actors[0]
    stage.pool.give_back(spare, 50)
    assert stage.take(owner="ann") is not spare


def test_an_own_process_goes_before_one_of_nobody_and_the_newest_first(make: Make) -> None:
    stage = make(spares=3, a=(9.0, 0.0))
    older, newer = stage.idle_ones(2)
    stage.look(QUIET_S)
    stage.spare().answers()
    assert [stage.take(), stage.take()] == [newer, older]
    assert stage.take().actor is stage.fleet.actors[2]


def test_a_warm_one_goes_before_one_that_warms_up(make: Make) -> None:
    stage = make(spares=2)
    stage.look(QUIET_S)
    stage.spare().answers()
    stage.look(QUIET_S)
    assert stage.spare() is stage.fleet.actors[1]
    assert [stage.take().actor for _ in range(2)] == stage.fleet.actors


# Making room.


def test_idle_ones_make_room_no_more_than_needed_and_the_one_that_has_waited_for_longest_first(stage: Stage) -> None:
    first, second, third, fourth = stage.idle_ones(4)
    wide = stage.take(cpus=2.0)
    assert [process.is_ended for process in (first, second, third, fourth, wide)] == [True, True, False, False, False]
    assert stage.fleet.room() == {"a": (0.0, 0.0)}


def test_idle_ones_of_another_owner_make_room_too(make: Make) -> None:
    stage = make(a=(1.0, 0.0))
    idle = stage.idle(owner="ann")
    stage.take(owner="bob")
    assert idle.is_ended


def test_idle_ones_elsewhere_or_that_hold_nothing_of_what_is_lacking_stay(make: Make) -> None:
    stage = make(a=(9.0, 1.0), b=(1.0, 1.0))
    without_gpu, elsewhere, with_gpu = stage.idle(), stage.idle("b", gpus=1), stage.idle(gpus=1)
    stage.take(cpus=2.0, gpus=1)
    assert [without_gpu.is_ended, elsewhere.is_ended, with_gpu.is_ended] == [False, False, True]


def test_working_ones_are_never_in_the_way(make: Make) -> None:
    stage = make(a=(1.0, 0.0))
    working = stage.take()
    stage.take()
    assert not working.is_ended


def test_a_gang_is_made_of_warm_workers_and_new_ones(stage: Stage) -> None:
    warm = stage.idle_ones(2)
    gang = [stage.take() for _ in range(4)]
    assert [process.is_reused for process in gang] == [True, True, False, False]
    assert set(gang[:2]) == set(warm)
    assert stage.fleet.room() == {"a": (0.0, 0.0)}


# How long they wait.


def test_an_idle_one_is_ended_when_its_time_is_over(stage: Stage) -> None:
    early, late = stage.idle_ones(2)
    for process in (early, late):
        process.asked_at += 1e6  # they answer
    late.idle_since = (late.idle_since or 0.0) + 10.0
    stage.look(TTL_S + 1.0)
    assert [early.is_ended, late.is_ended] == [True, False]
    assert stage.fleet.room() == {"a": (3.0, 0.0)}


def test_so_many_that_the_newest_job_could_have_used_stay_as_spares(make: Make) -> None:
    stage = make(spares=2, a=(9.0, 0.0))
    other = stage.idle(owner="bob")
    processes = stage.idle_ones(3)
    stage.passes(TTL_S + 1.0)
    for process in (other, *processes):
        process.asked_at = stage.clock.now_s
    stage.look()
    assert [process.is_ended for process in (other, *processes)] == [True, True, False, False]


def test_without_a_time_to_live_nothing_stays_but_spares(make: Make) -> None:
    stage = make(ttl_s=0.0, spares=1)
    kept, ended = stage.take(), stage.take()
    stage.pool.give_back(kept, 50)
    stage.pool.give_back(ended, 50)
    assert [kept.is_ended, ended.is_ended] == [False, True]


def test_a_pool_that_is_drained_keeps_nothing_from_then_on(make: Make) -> None:
    stage = make(spares=1)
    working, idle = stage.take(), stage.take()
    stage.pool.give_back(idle, 50)
    stage.pool.drain()
    assert [working.is_ended, idle.is_ended] == [False, True]
    stage.pool.give_back(working, 50)
    assert working.is_ended
    stage.look(1e6)
    assert len(stage.fleet.actors) == 2
    assert stage.messages() == []


def test_a_process_that_was_ended_cannot_be_given_back(stage: Stage) -> None:
    process = stage.take()
    stage.pool.end(process)
    stage.pool.give_back(process, 50)
    stage.pool.end(process)
    assert stage.messages() == []
    assert stage.fleet.room() == {"a": (4.0, 0.0)}, "what it held is free once"


# Spares.


def test_a_spare_is_made_after_a_quiet_moment(make: Make) -> None:
    stage = make(spares=1)
    stage.take()
    stage.look()
    assert len(stage.fleet.actors) == 1
    stage.look(QUIET_S)
    stage.spare().answers()
    assert [message.is_warm for message in stage.messages()] == [False, True]
    stage.look(QUIET_S)
    assert len(stage.fleet.actors) == 2


def test_a_spare_has_the_shape_of_the_newest_job_and_is_where_most_room_is(make: Make) -> None:
    stage = make(spares=1, a=(4.0, 0.0), b=(7.0, 0.0))
    stage.take("a", cpus=3.0)
    stage.look(QUIET_S)
    stage.spare()
    spare = stage.messages()[-1]
    assert (spare.node_id, spare.cpus, spare.HasField("owner")) == ("b", 3.0, False)


def test_no_spare_is_made_where_there_is_no_room_and_none_is_ended_for_it(make: Make) -> None:
    stage = make(spares=1, a=(3.0, 0.0))
    idle = stage.idle(owner="bob", cpus=2.0)
    stage.take(cpus=0.5)
    stage.take(cpus=0.5, owner="eve")
    stage.look(QUIET_S)
    assert len(stage.fleet.actors) == 3
    assert not idle.is_ended


def test_before_the_nodes_are_known_no_spare_is_made(make: Make) -> None:
    stage = make(spares=1)
    stage.fleet._usable = {}
    stage.look(QUIET_S)
    assert stage.fleet.actors == []


def test_a_spare_that_makes_room_leaves_none_behind(make: Make) -> None:
    stage = make(spares=1, a=(1.0, 0.0))
    stage.look(QUIET_S)
    spare = stage.spare()
    stage.take(cpus=0.7)
    assert spare.is_killed
    stage.look(1e6)
    assert len(stage.fleet.actors) == 2


def test_after_a_spare_that_does_not_get_warm_the_next_one_comes_later(make: Make) -> None:
    stage = make(spares=1)
    stage.look(QUIET_S)
    stage.spare().dies()
    stage.pool.hear(WAIT_S)
    assert stage.fleet.room() == {"a": (4.0, 0.0)}
    stage.look(QUIET_S)
    assert len(stage.fleet.actors) == 1
    stage.look(SPARE_RETRY_S)
    hanging = stage.spare()
    stage.look(WARM_UP_S + 1.0)
    assert hanging.is_killed
    assert len(stage.fleet.actors) == 2
    stage.look(SPARE_RETRY_S)
    assert len(stage.fleet.actors) == 3


def test_a_spare_that_is_taken_while_it_warms_up_stays_taken(make: Make) -> None:
    stage = make(spares=1)
    stage.look(QUIET_S)
    spare = stage.spare()
    process = stage.take()
    assert process.actor is spare
    assert (process.is_reused, process.is_warm) == (True, False)
    spare.answers()
    stage.pool.hear(WAIT_S)
    assert process.idle_since is None
    assert spare.asked == [], "it is not asked to rest"
    stage.look(WARM_UP_S + 1.0)
    assert not spare.is_killed


# How they fare.


def test_an_idle_one_is_asked_again_and_again(stage: Stage) -> None:
    process = stage.idle()
    assert process.actor.asked[0][:2] == ("rest", ("job-0/1/0",))
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


def test_an_idle_one_that_dies_leaves_and_what_it_held_is_free(stage: Stage) -> None:
    process = stage.idle()
    process.actor.dies()
    stage.pool.hear(WAIT_S)
    assert process.is_ended
    assert stage.messages() == []
    assert stage.fleet.room() == {"a": (4.0, 0.0)}
    assert stage.take() is not process


def test_an_idle_one_that_does_not_answer_is_ended(stage: Stage) -> None:
    process = stage.idle()
    stage.look(SILENT_S)
    assert not process.is_ended
    stage.look(0.1)
    assert process.is_ended
    assert stage.fleet.room() == {"a": (4.0, 0.0)}


def test_one_that_cannot_be_reached_is_asked_again_but_not_for_ever(stage: Stage) -> None:
    process = stage.idle()
    process.actor.fails(ActorUnavailableError("the network is broken", None))
    stage.pool.hear(WAIT_S)
    process.actor.wait_until_asked()
    assert process.actor.asked[0][:2] == ("rest", ("job-0/1/0",))
    assert not process.is_ended
    stage.passes(SILENT_S)
    process.actor.fails(ActorUnavailableError("the network is broken", None))
    stage.pool.hear(WAIT_S)
    process.actor.wait_until_asked()
    stage.look(0.1)
    assert process.is_ended


def test_one_that_was_taken_meanwhile_is_not_asked_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_answer_to_an_earlier_question_does_not_end_a_process_that_works(stage: Stage) -> None:
    process = stage.idle()
    question = process.actor.asked.pop(0)
    assert stage.take() is process
    question.answer.set_exception(RuntimeError("the worker has failed"))
    stage.pool.hear(WAIT_S)
    assert not process.is_ended


def test_an_answer_waits_for_nobody_who_waits_for_ray(stage: Stage) -> None:
    process = stage.idle()
    has_answered = threading.Event()

    def kill(actor: PlayedActor) -> None:
        """End an actor as Ray does, whose thread first tells of calls that have failed."""
        threading.Thread(target=lambda: (actor.dies(), has_answered.set())).start()
        assert has_answered.wait(WAIT_S)

    stage.fleet.kill = kill  # type: ignore[method-assign]
    stage.take(cpus=4.0)
    assert process.is_ended


def test_processes_are_told_as_they_are(make: Make) -> None:
    stage = make(a=(8.0, 2.0))
    working = stage.take(gpus=1)
    told = stage.told
    stage.pool.is_up(working, 42)
    assert stage.told == told + 1
    idle = stage.idle(owner="bob", cpus=2.5)
    first, second = stage.messages()
    assert first == WorkerProcess(
        node_id="a", pid=42, cpus=1.0, gpus=1.0, owner="ann", job_id="job-0", attempt=1, number=0
    )
    assert second.idle_since.ToMicroseconds() == int(1e6 * (idle.idle_since or 0.0))
    second.ClearField("idle_since")
    assert second == WorkerProcess(node_id="a", cpus=2.5, owner="bob", is_warm=True, memory_bytes=50)


# A launcher that takes over.


def launcher_on(fleet: PlayedFleet) -> Launcher:
    config = Config(
        "", "", 1, "", "", "json", warm_ttl_s=TTL_S, warm_workers=0, warm_memory_bytes=0, data_cache_bytes=0
    )
    return Launcher(config, fleet, Lifeline())


def test_a_launcher_puts_the_workers_of_the_one_before_where_they_belong(clock: Clock) -> None:
    fleet = PlayedFleet({"a": (9.0, 0.0)})
    order = StartGang(job_id="job-1", attempt=2, owner="ann")
    idle = Description(ENGINE_VERSION, 1.0, 0.0, "ann", "a", 11)
    fresh = idle._replace(owner=None, pid=12)
    old = idle._replace(version="0")
    working = idle._replace(
        pid=13, order_bytes=order.SerializeToString(), number=3, generation=1, members=1, address="x", since=1
    )
    fleet.left = [idle, fresh, old, working, None]
    launcher = launcher_on(fleet)
    [attempt] = launcher._take_over()
    assert [actor.is_killed for actor in fleet.actors] == [False, False, True, False, True]
    assert [actor.asked[0][:2] for actor in fleet.actors[:2]] == [("rest", ("",))] * 2
    told = {message.pid: message for message in launcher._pool.processes()}
    assert [told[pid].HasField("idle_since") for pid in (11, 12, 13)] == [True, True, False]
    assert (told[13].job_id, told[13].attempt, told[13].number, told[13].owner) == ("job-1", 2, 3, "ann")
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
