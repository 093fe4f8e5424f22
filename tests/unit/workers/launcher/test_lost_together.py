"""Workers that are lost together are one event and one heal; those are scripted."""

from ray.exceptions import ActorDiedError, ActorUnavailableError, ActorUnschedulableError

from tests.support.scripted_fleet import Stage


class Gone(ActorDiedError):
    """What Ray says of an actor whose node is gone."""

    def __str__(self) -> str:
        return "The actor died because its node has died. Node Id: 5ea9, NodeIP address: 10.0.0.2"


def test_a_node_that_goes_with_its_workers_is_one_event_and_one_heal() -> None:
    stage = Stage(workers=4)
    stage.order.node_ids[:] = ["node-0", "node-0", "node-1", "node-1"]
    stage.begin()
    stage.fleet.actors[1].fail(Gone())  # of the other one on that node Ray has not spoken yet
    change = stage.next_change("go on")
    assert change.message == "workers 0 and 1 on node node-0 died: their node is gone; 2 workers go on"
    assert (change.running_workers, list(change.node_ids)) == (2, ["node-1", "node-1"])
    stage.fleet.wait_for(lambda: all(len(actor.told("form")) == 2 for actor in stage.fleet.actors[2:]))
    stage.fleet.actors[0].fail(Gone())
    stage.close()
    stage.end()
    assert [len(actor.told("form")) for actor in stage.fleet.actors] == [1, 1, 2, 2]


def test_workers_that_cannot_be_reached_together_are_lost_together() -> None:
    stage = Stage(workers=3, hang_timeout_s=0.2)
    stage.order.node_ids[:] = ["node-0", "node-1", "node-1"]
    stage.begin()
    for actor in stage.fleet.actors[1:]:
        actor.fail(ActorUnavailableError("the network is broken", None))
    change = stage.next_change("did not answer")
    assert change.message == "workers 1 and 2 on node node-1 did not answer for 0 s; 1 worker goes on"
    assert change.running_workers == 1
    assert len(stage.fleet.actors[0].told("form")) == 2
    stage.close()
    stage.end()


def test_a_gang_whose_node_is_gone_before_it_is_up_says_so_in_our_words() -> None:
    stage = Stage()
    stage.fleet.failures = {0: ActorUnschedulableError("The actor is not schedulable: NodeAffinitySchedulingStrategy")}
    stage.attempt().start()
    error = stage.end().error
    assert (error.reason, error.message) == (
        "PLACEMENT_FAILED",
        "a worker did not come up: worker 0 died: its node is gone",
    )
