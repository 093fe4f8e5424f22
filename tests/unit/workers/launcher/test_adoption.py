"""A launcher takes over a gang of which some are on their way out, as only the launcher before knew."""

from lockstep.v1.internal_service_pb2 import ResizeGang
from tests.support.scripted_fleet import Stage


def after_a_shrink(ended: tuple[int, ...]) -> Stage:
    """A gang of three that was shrunk to two by a launcher that died then."""
    stage = Stage()
    # Two have come to the second generation; the third was told to leave.
    attempt = stage.take_over(
        generations=[2, 2, 1], ranks=[0, 1, 2], since=[1, 1, 1], members=2, dismissed=[2], ended=ended
    )
    attempt.resize(ResizeGang(revision=7, node_ids=["node-0", "node-1", "node-9"]))
    return stage


def assert_that_it_grows(stage: Stage) -> None:
    change = stage.next_change("")
    while change.revision != 7:
        change = stage.next_change("")
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 4)
    assert not any(actor.told("form") for actor in stage.fleet.actors[:3]), "the two that stay go on undisturbed"
    joiner = stage.fleet.actors[3]
    joiner.prepare()
    assert stage.next_change("grown to 3 workers").running_workers == 3
    assert [actor.told("form")[0][2] for actor in (*stage.fleet.actors[:2], joiner)] == [0, 1, 2]
    assert not stage.fleet.actors[2].told("form")
    assert not joiner.is_killed
    stage.close()
    assert not stage.end().HasField("error")


def test_one_that_was_let_go_and_has_ended_gets_no_rank_and_ends_nothing() -> None:
    stage = after_a_shrink(ended=(2,))
    assert_that_it_grows(stage)
    assert "worker-2" in stage.fleet.given_back


def test_one_that_was_let_go_and_is_still_there_gets_no_rank() -> None:
    stage = after_a_shrink(ended=())
    leaving = stage.fleet.actors[2]
    leaving.end(is_reusable=True, was_dismissed=True)
    assert_that_it_grows(stage)


def test_the_gang_is_told_as_it_is_without_the_one_that_leaves() -> None:
    stage = Stage()
    attempt = stage.take_over(generations=[2, 2, 1], ranks=[0, 1, 2], since=[1] * 3, members=2, dismissed=[2])
    assert attempt.inventory().running_workers == 2
    stage.close()
    stage.end()


def test_one_that_has_finished_is_waited_for_by_nobody_and_nobody_joins_any_more() -> None:
    stage = Stage(workers=3)
    attempt = stage.take_over(generations=[1, 1, 1], ranks=[0, 1, 2], since=[1, 1, 1], ended=[0])
    stage.next_change("")
    assert not any(actor.told("form") for actor in stage.fleet.actors)
    attempt.resize(ResizeGang(revision=3, node_ids=["node-1", "node-2", "node-3"]))
    change = stage.next_change("")
    assert change.revision == 3, "an order is answered also when nothing comes of it"
    assert len(stage.fleet.actors) == 3
    for actor in stage.fleet.actors[1:]:
        actor.end()
    assert not stage.end().HasField("error")


def test_when_one_has_died_the_next_generation_is_without_one_that_has_finished() -> None:
    stage = Stage(workers=3)
    stage.take_over(generations=[1, 1], ranks=[0, 1], since=[1, 1], members=3, ended=[0])
    finished, finishing = stage.fleet.actors
    stage.fleet.wait_for(lambda: finishing.told("form"))
    assert finishing.told("form")[0][1:4] == (2, 0, ["address-1"])
    assert not finished.told("form")
    finishing.end()
    assert not stage.end().HasField("error")


def test_one_that_is_let_go_by_an_order_that_comes_late_is_lost_like_any_other() -> None:
    stage = Stage(workers=3)
    stage.take_over(generations=[1, 1, 1], ranks=[0, 1, 2], since=[1, 1, 1])
    stage.fleet.actors[2].end(is_reusable=True, was_dismissed=True)
    change = stage.next_change("worker 2 was let go before this launcher came; 2 workers go on")
    assert change.running_workers == 2
    assert [len(actor.told("form")) for actor in stage.fleet.actors] == [1, 1, 0]
    stage.close()
    assert not stage.end().HasField("error")
