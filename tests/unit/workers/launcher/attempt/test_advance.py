"""What an attempt does where the order of things matters."""

import pytest

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import PLACEMENT_TIMEOUT_S
from lockstep.workers.launcher.attempt import ending
from lockstep.workers.launcher.attempt.advance import begin
from lockstep.workers.launcher.attempt.commands import TellStopped
from lockstep.workers.launcher.attempt.ending import first_cause
from lockstep.workers.launcher.attempt.events import CameUp, ResizeAsked, StopAsked, TimeIsUp, Told
from lockstep.workers.launcher.attempt.state import Cause, Failure, Finishing, Gathering, Leaving, Plan, Training
from tests.support.attempt_world import Worker, World, death, ended, prepared

UNREADABLE = JobError(reason="DATA_INVALID", message="data.idx.root: there is no such folder")


def of(workers: int, least: int = 1) -> World:
    return World(begin(Plan(least), [f"node-{number}" for number in range(workers)], 0.0))


def up(world: World, *numbers: int) -> list[Worker]:
    """Have workers come up."""
    for number in numbers:
        world.happens(CameUp(number, f"address-{number}"))
    return [world.workers[number] for number in numbers]


def trains(workers: int, least: int = 1) -> World:
    """A gang in its first generation."""
    world = of(workers, least)
    for worker in up(world, *range(workers)):
        world.happens(prepared(worker))
    assert isinstance(world.attempt.state, Training)
    return world


def stopped(world: World) -> TellStopped:
    """What it has said at its end."""
    (last,) = [fact for fact in world.told if isinstance(fact, TellStopped)]
    return last


def test_those_who_are_ready_meet_as_soon_as_the_one_they_wait_for_is_let_go() -> None:
    world = of(3)
    ready = up(world, 0, 1, 2)[:2]
    for worker in ready:
        world.happens(prepared(worker))
    assert isinstance(world.attempt.state, Gathering)
    world.happens(ResizeAsked(1, ("node-0", "node-1")))
    assert [worker.generation for worker in world.workers.values()] == [1, 1, 0]


def test_why_a_worker_has_failed_is_told_though_another_one_never_comes() -> None:
    world = of(2)
    world.now = PLACEMENT_TIMEOUT_S - 1.0
    world.happens(ended(up(world, 0)[0], UNREADABLE))
    world.fall_silent()
    assert stopped(world).error == UNREADABLE


def test_each_worker_has_its_own_time_to_come_up() -> None:
    world = trains(1)
    world.happens(ResizeAsked(1, ("node-0", "node-1")))
    world.now = PLACEMENT_TIMEOUT_S / 2
    world.happens(ResizeAsked(2, ("node-0", "node-1", "node-2")))
    world.now = PLACEMENT_TIMEOUT_S
    world.happens(TimeIsUp())
    assert [member.node_id for member in world.attempt.members] == ["node-0", "node-2"]


def test_a_worker_that_was_let_go_is_not_refused_when_it_has_read_other_data() -> None:
    world = trains(1)
    world.happens(ResizeAsked(1, ("node-0", "node-1")))
    (joiner,) = up(world, 1)
    world.happens(ResizeAsked(2, ("node-0",)))
    world.happens(prepared(joiner, data="other"))
    assert [type(member.stage) for member in world.attempt.members][1:] == [Leaving]
    assert not any(fact.refused_node_ids for fact in world.told if hasattr(fact, "refused_node_ids"))


def test_a_worker_that_tells_of_its_data_sooner_than_its_process_answers_is_ready_when_that_does() -> None:
    world = of(1)
    world.happens(prepared(world.workers[0]))
    assert isinstance(world.attempt.state, Gathering)
    up(world, 0)
    assert world.workers[0].generation == 1


def test_a_stop_that_is_refused_when_one_has_left_lets_the_others_finish() -> None:
    world = trains(2)
    world.happens(StopAsked(60.0, keep=True, refusable=3))
    world.happens(ended(world.workers[0]))
    status = world.workers[1].status._replace(refused_stop=3, refused_because="the disk is full")
    world.happens(Told(1, status))
    assert isinstance(world.attempt.state, Finishing)
    assert world.attempt.deadline == world.now + ending.LAST_GRACE_S
    world.happens(ended(world.workers[1]))
    assert stopped(world) == TellStopped(None, is_too_small=False)


@pytest.mark.parametrize("is_stopping", [False, True])
def test_whoever_is_killed_while_one_that_is_done_has_the_others_let_go_is_not_missed(is_stopping: bool) -> None:
    world = trains(3)
    if is_stopping:
        world.happens(StopAsked(60.0, keep=True))
    world.happens(Told(1, world.workers[1].status._replace(has_finished=True)))
    assert [worker.is_dismissed for worker in world.workers.values()] == [True, False, True]
    first, second = world.workers[0], world.workers[2]
    world.happens(death(first, second))
    world.happens(death(second))
    assert world.attempt.generation == 1, "nobody is told to meet once more"
    world.happens(ended(world.workers[1]))
    assert stopped(world) == TellStopped(None, is_too_small=False)


def test_what_a_worker_did_itself_comes_before_a_death_and_that_before_a_lost_peer() -> None:
    own, death, lost = (
        Failure(JobError(reason=reason, message=message), cause)
        for reason, message, cause in (
            ("NON_FINITE_LOSS", "train_loss is nan", Cause.OWN),
            ("WORKER_LOST", "worker 1 died: its process was killed or crashed", Cause.DEATH),
            ("WORKER_LOST", "worker 1 died: so says worker 0, which cannot reach it", Cause.LOST_PEER),
        )
    )
    assert first_cause((lost, death, own)) == own.error
    assert first_cause((lost, death)) == death.error


def test_an_attempt_is_a_value() -> None:
    world = trains(2)
    before = world.attempt
    world.happens(ResizeAsked(1, ("node-0",)))
    assert before == trains(2).attempt
