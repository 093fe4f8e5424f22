"""Workers that live and lose each other are brought together again, as long as that helps."""

from collections.abc import Iterator

import pytest

from lockstep.v1.internal_service_pb2 import ResizeGang
from lockstep.workers.launcher.attempt import ending, partition
from lockstep.workers.launcher.attempt.partition import MAX_PEER_LOSSES, PeerLosses
from tests.support.scripted_fleet import Stage

FAILED_MEETING_S = 62.0


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(partition, "PEER_LOSS_S", 0.0)
    stage = Stage()
    yield stage
    stage.close()


def lose_each_other(stage: Stage, generation: int, has_finished_a_step: bool = False) -> None:
    """Have the workers lose each other in this generation, once they know of it."""
    stage.fleet.wait_for(lambda: all(len(actor.told("form")) == generation for actor in stage.fleet.actors))
    for actor in stage.fleet.actors:
        actor.tell(lost_generation=generation, **({"went_on_in": generation} if has_finished_a_step else {}))


def test_each_time_is_told_and_after_the_last_one_the_attempt_is_given_up(stage: Stage) -> None:
    stage.begin()
    for count in range(1, MAX_PEER_LOSSES + 1):
        lose_each_other(stage, generation=count)
        change = stage.next_change("brought together again")
        assert f"{count} of at most {MAX_PEER_LOSSES} times without a finished step" in change.message
        assert change.running_workers == 2
    lose_each_other(stage, generation=MAX_PEER_LOSSES + 1)
    stage.fleet.wait_for(lambda: all(actor.told("dismiss") for actor in stage.fleet.actors))
    stage.close()
    error = stage.end().error
    assert (error.reason, "cannot reach each other" in error.message) == ("WORKER_LOST", True)


def test_workers_that_get_on_in_between_are_never_given_up(stage: Stage) -> None:
    stage.begin()
    for generation in range(1, 2 * MAX_PEER_LOSSES):
        lose_each_other(stage, generation, has_finished_a_step=True)
        assert f"1 of at most {MAX_PEER_LOSSES} times" in stage.next_change("brought together again").message
    stage.close()
    assert not stage.end().HasField("error")


def test_however_long_a_failed_meeting_takes_there_are_not_many() -> None:
    now, seen = 1000.0, PeerLosses()
    for _ in range(MAX_PEER_LOSSES):
        seen = seen.begun(now)
        now += FAILED_MEETING_S
        assert seen.is_due(now)
        seen = seen.counted()
        assert not seen.is_hopeless
    seen = seen.begun(now).counted()
    assert seen.is_hopeless
    assert seen.deadline is None, "it is counted once"


def grow_while_they_finish(stage: Stage) -> None:
    """Have a third worker join in the moment in which the others are done."""
    running = stage.begin()
    running.resize(ResizeGang(revision=1, node_ids=[*stage.order.node_ids, "node-late"]))
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    stage.fleet.actors[2].prepare()
    stage.next_change("grown to 3 workers")


@pytest.mark.parametrize("tells_it_early", [True, False])
def test_whoever_joins_those_that_are_done_leaves_and_is_not_brought_together_with_them(
    stage: Stage, tells_it_early: bool
) -> None:
    grow_while_they_finish(stage)
    first, second, joiner = stage.fleet.actors
    if tells_it_early:
        first.finish()
        stage.fleet.wait_for(lambda: joiner.told("dismiss"))
    else:
        first.end(is_reusable=True)
    # They call the one that is gone, and find nobody.
    joiner.tell(lost_generation=2)
    second.tell(lost_generation=2)
    stage.fleet.wait_for(lambda: joiner.told("dismiss") and second.told("dismiss"))
    first.end(is_reusable=True)
    joiner.end(is_reusable=True, was_dismissed=True)
    second.end(is_reusable=True, was_dismissed=True)
    messages = []
    while not (fact := stage.facts.get(timeout=20)).HasField("gang_stopped"):
        messages.append(fact.gang_changed.message)
    assert not fact.gang_stopped.HasField("error")
    assert not any(messages), messages
    assert sorted(stage.fleet.given_back) == ["worker-0", "worker-1", "worker-2"]


def test_a_worker_that_dies_once_another_is_done_is_no_loss(stage: Stage) -> None:
    grow_while_they_finish(stage)
    first, second, joiner = stage.fleet.actors
    first.finish()
    stage.fleet.wait_for(lambda: joiner.told("dismiss"))
    second.die()
    joiner.die()
    first.end()
    messages = []
    while not (fact := stage.facts.get(timeout=20)).HasField("gang_stopped"):
        messages.append(fact.gang_changed.message)
    assert not fact.gang_stopped.HasField("error")
    assert not any(messages), messages
    assert len(joiner.told("form")) == 1


def test_who_does_not_go_once_another_is_done_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LAST_GRACE_S", 0.1)
    grow_while_they_finish(stage)
    stage.fleet.actors[0].finish()
    assert not stage.end().HasField("error")
    assert all(actor.is_killed for actor in stage.fleet.actors)
