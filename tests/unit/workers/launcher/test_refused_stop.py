"""A stop that the workers refuse, since they could not keep what they had; they are scripted."""

from collections.abc import Iterator

import pytest

from lockstep.v1.internal_service_pb2 import ResizeGang, StopGang
from tests.support.scripted_fleet import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def test_a_stop_that_the_workers_refuse_ends_nobody_and_the_next_one_is_another(stage: Stage) -> None:
    running = stage.begin()
    running.stop(StopGang(grace_s=0.5, keep=True, refusable=7))
    stage.fleet.wait_for(lambda: all(actor.told("stop") for actor in stage.fleet.actors))
    assert [actor.told("stop") for actor in stage.fleet.actors] == [[(1, True, 7)]] * 2
    for actor in stage.fleet.actors:
        actor.tell(refused_stop=6, refused_because="of an earlier one")
    stage.fleet.actors[0].tell(refused_stop=7, refused_because="the disk is full")
    change = stage.next_change("the disk is full")
    assert (change.refuses_stop, change.running_workers) == (True, 2)
    running.resize(ResizeGang(revision=1, node_ids=[*stage.order.node_ids, "node-a"]))
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    stage.fleet.actors[2].prepare()
    assert not stage.next_change("grown to 3 workers").refuses_stop
    assert not any(actor.is_killed for actor in stage.fleet.actors)
    running.stop(StopGang(grace_s=20.0, keep=True, refusable=9))
    stage.fleet.wait_for(lambda: all((1, True, 9) in actor.told("stop") for actor in stage.fleet.actors))
    for actor in stage.fleet.actors:
        actor.end()
    assert not stage.end().HasField("error")
