"""An attempt decides what becomes of its workers; those are scripted."""

from collections.abc import Iterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from lockstep.v1.internal_service_pb2 import ResizeGang
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.launcher.attempt import ending, joining
from lockstep.workers.launcher.fleet import Process
from tests.support.scripted_fleet import DATA, HARDWARE, ScriptedActor, Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.close()


def grow(stage: Stage, node_id: str) -> ScriptedActor:
    """Have one more worker come up."""
    running = stage.begin()
    count = len(stage.fleet.actors)
    running.resize(ResizeGang(revision=1, node_ids=[*stage.order.node_ids, node_id]))
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == count + 1)
    return stage.fleet.actors[-1]


def test_a_worker_of_the_same_hardware_joins(stage: Stage) -> None:
    grow(stage, "node-a").prepare()
    change = stage.next_change("grown to 3 workers")
    assert (change.running_workers, list(change.refused_node_ids)) == (3, [])


def test_a_worker_of_other_hardware_is_refused_and_the_others_are_not_disturbed(stage: Stage) -> None:
    joiner = grow(stage, "node-odd")
    joiner.prepare("cpu AVX512")
    change = stage.next_change("cannot join")
    assert f"it has cpu AVX512, the others have {HARDWARE}" in change.message
    assert list(change.refused_node_ids) == ["node-odd"]
    assert (change.running_workers, list(change.node_ids)) == (2, ["node-0", "node-1"])
    assert joiner.is_killed
    assert [len(actor.told("form")) for actor in stage.fleet.actors] == [1, 1, 0]


def test_a_worker_with_other_data_is_refused_and_the_others_are_not_disturbed(stage: Stage) -> None:
    stage.order.spec.data.idx.root = "/data/mnist"
    joiner = grow(stage, "node-odd")
    joiner.prepare(data="fedcba")
    change = stage.next_change("cannot join")
    assert "data.idx: its data is not that of the others" in change.message
    assert f"is fedcba, theirs is {DATA}" in change.message
    assert "has cpu" not in change.message
    assert list(change.refused_node_ids) == ["node-odd"]
    assert (change.running_workers, list(change.node_ids)) == (2, ["node-0", "node-1"])
    assert joiner.is_killed
    assert [len(actor.told("form")) for actor in stage.fleet.actors] == [1, 1, 0]


def test_workers_that_begin_with_different_data_find_it_out_themselves() -> None:
    stage = Stage(workers=3)
    stage.attempt().start()
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    for actor, data in zip(stage.fleet.actors, ["a", "b", "a"], strict=True):
        actor.prepare(data=data)
    stage.fleet.wait_for(lambda: all(actor.told("form") for actor in stage.fleet.actors))
    assert [len(actor.told("form")[0][3]) for actor in stage.fleet.actors] == [3, 3, 3], "nobody knows who is right"
    stage.close()
    stage.end()


def test_a_worker_that_fails_before_it_has_joined_is_refused(stage: Stage) -> None:
    grow(stage, "node-bare").end(JobError(reason="DATA_INVALID", message="data.idx.root: there is no such folder"))
    change = stage.next_change("cannot join")
    assert "there is no such folder" in change.message
    assert (change.running_workers, list(change.refused_node_ids)) == (2, ["node-bare"])


def test_without_the_one_that_is_refused_a_gang_may_be_too_small() -> None:
    stage = Stage(workers=2, min_workers=2)
    joiner = grow(stage, "node-odd")
    stage.fleet.actors[1].die()
    stage.next_change("1 worker goes on")
    joiner.prepare("cpu AVX512")
    stage.next_change("fewer than resources.min_workers (2)")
    stage.fleet.actors[0].end()
    assert stage.end().is_too_small


@pytest.mark.parametrize(("min_workers", "formed"), [(2, [1, 0, 1]), (3, [1, 1, 1])])
def test_a_gang_begins_without_who_differs_if_enough_are_left(min_workers: int, formed: list[int]) -> None:
    stage = Stage(workers=3, min_workers=min_workers)
    stage.attempt().start()
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    for actor, hardware in zip(stage.fleet.actors, [HARDWARE, "cpu AVX512", HARDWARE], strict=True):
        actor.prepare(hardware)
    stage.fleet.wait_for(lambda: stage.fleet.actors[2].told("form"))
    assert [len(actor.told("form")) for actor in stage.fleet.actors] == formed
    stage.close()
    stage.end()


def test_a_worker_that_cannot_be_reached_for_a_moment_is_not_taken_for_dead(stage: Stage) -> None:
    running = stage.begin()
    away, other = stage.fleet.actors
    away.fail(ActorUnavailableError("the network is broken", None))
    running.resize(ResizeGang(revision=1, node_ids=["node-0"]))  # what comes after all of that
    stage.next_change("shrunk to 1 worker")
    away.fail(None)
    stage.fleet.wait_for(lambda: len(away.told("form")) == 2)
    assert not away.is_killed
    other.end()
    away.end()
    assert not stage.end().HasField("error")


def test_a_worker_that_can_be_reached_no_more_is_hung_in_the_end() -> None:
    stage = Stage(hang_timeout_s=0.2)
    stage.begin()
    stage.fleet.actors[1].fail(ActorUnavailableError("the network is broken", None))
    change = stage.next_change("did not answer for 0 s; 1 worker goes on")
    assert change.running_workers == 1
    assert stage.fleet.actors[1].is_killed
    stage.close()
    stage.end()


def test_whoever_has_trained_before_comes_first_when_a_launcher_takes_over_in_the_middle_of_a_change() -> None:
    stage = Stage()
    # The last one came to know of the second generation before the others did.
    stage.take_over(generations=[1, 1, 2], ranks=[0, 1, 2], since=[1, 1, 2])
    stage.fleet.wait_for(lambda: all(actor.told("form") for actor in stage.fleet.actors))
    assert [actor.told("form")[0][1:3] for actor in stage.fleet.actors] == [(3, 0), (3, 1), (3, 2)]
    stage.close()


@pytest.mark.parametrize("generation", [2, 1], ids=["they know that one is lost", "they do not"])
def test_a_gang_that_has_become_too_small_stops_also_when_the_launcher_changes_meanwhile(generation: int) -> None:
    stage = Stage(workers=3, min_workers=3)
    members = 2 if generation == 2 else 3
    stage.take_over(generations=[generation] * 2, ranks=[0, 1], since=[1, 1], members=members)
    stage.fleet.wait_for(lambda: all(actor.told("stop") for actor in stage.fleet.actors))
    assert [actor.told("stop") for actor in stage.fleet.actors] == [[(1, True, 0)]] * 2
    stage.next_change("fewer than resources.min_workers (3)")
    for actor in stage.fleet.actors:
        actor.end()
    assert stage.end().is_too_small


def test_when_nobody_is_left_to_write_a_checkpoint_all_workers_are_lost() -> None:
    stage = Stage(workers=3, min_workers=3)
    stage.begin()
    first, *others = stage.fleet.actors
    first.die()
    stage.fleet.wait_for(lambda: all(actor.told("stop") for actor in others))
    for actor in others:
        actor.die()
    stopped = stage.end()
    assert (stopped.is_too_small, stopped.error.reason) == (False, "WORKER_LOST")
    assert "worker 0 on node node-0 died" in stopped.error.message
    assert "no worker was left that could write a checkpoint" in stopped.error.message


def test_workers_that_die_before_they_have_trained_are_lost_too() -> None:
    stage = Stage(workers=2, min_workers=2)
    stage.attempt().start()
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 2 and stage.fleet.actors[1].told("begin"))
    stage.fleet.actors[0].prepare()
    stage.fleet.actors[1].die()
    stopped = stage.end()
    assert (stopped.is_too_small, stopped.error.reason) == (False, "WORKER_LOST")


@pytest.mark.parametrize("dies_first", [True, False])
def test_one_worker_that_has_written_a_checkpoint_is_enough_when_the_rest_is_too_small(dies_first: bool) -> None:
    stage = Stage(workers=3, min_workers=3)
    stage.begin()
    stage.fleet.actors[1].die()
    stage.fleet.wait_for(lambda: stage.fleet.actors[0].told("stop") and stage.fleet.actors[2].told("stop"))
    rest = [stage.fleet.actors[2].die, stage.fleet.actors[0].end]
    for leave in rest if dies_first else rest[::-1]:
        leave()
    stopped = stage.end()
    assert (stopped.is_too_small, stopped.HasField("error")) == (True, False)


def test_a_worker_that_leaves_without_having_trained_has_written_no_checkpoint(stage: Stage) -> None:
    stage = Stage(workers=2, min_workers=2)
    joiner = grow(stage, "node-a")
    for actor in stage.fleet.actors[:2]:
        actor.die()
    stage.fleet.wait_for(lambda: joiner.told("stop"))
    joiner.end()
    stopped = stage.end()
    assert (stopped.is_too_small, stopped.error.reason) == (False, "WORKER_LOST")


def test_a_worker_that_fails_while_it_is_let_go_is_only_told_of(stage: Stage) -> None:
    running = stage.begin()
    running.resize(ResizeGang(revision=1, node_ids=[*stage.order.node_ids, "node-a"]))
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    running.resize(ResizeGang(revision=2, node_ids=stage.order.node_ids))
    joiner = stage.fleet.actors[2]
    stage.fleet.wait_for(lambda: joiner.told("dismiss"))
    joiner.end(JobError(reason="DATA_INVALID", message="data.idx.root: there is no such folder"))
    change = stage.next_change("worker 2, which was let go, failed: data.idx.root: there is no such folder")
    assert (change.running_workers, list(change.node_ids)) == (2, ["node-0", "node-1"])
    assert not any(actor.told("dismiss") for actor in stage.fleet.actors[:2])
    stage.close()
    assert not stage.end().HasField("error")


def test_what_others_fail_with_once_one_has_failed_still_counts(stage: Stage) -> None:
    stage.begin()
    first, second = stage.fleet.actors
    first.end(JobError(reason="WORKER_LOST", message="a peer was lost", rank=0))
    stage.fleet.wait_for(lambda: second.told("dismiss"))
    second.end(JobError(reason="NON_FINITE_LOSS", message="train_loss is nan at step 7", rank=1))
    assert stage.end().error.reason == "NON_FINITE_LOSS"


def test_when_one_worker_has_failed_the_others_may_report_before_they_go(stage: Stage) -> None:
    stage.begin()
    reporting, failed = stage.fleet.actors
    failed.end(JobError(reason="NON_FINITE_LOSS", message="train_loss is nan at step 7", rank=1))
    stage.fleet.wait_for(lambda: reporting.told("dismiss") or reporting.is_killed)
    assert not reporting.is_killed, "it still has points to deliver"
    reporting.end()
    assert stage.end().error.message == "train_loss is nan at step 7"


def test_who_does_not_go_after_a_failure_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "AFTERMATH_S", 0.05)
    stage = Stage()
    stage.begin()
    stage.fleet.actors[0].end(JobError(reason="NON_FINITE_LOSS", message="train_loss is nan at step 7"))
    assert stage.end().error.reason == "NON_FINITE_LOSS"
    assert stage.fleet.actors[1].is_killed


def test_a_gang_of_warm_workers_trains_and_is_given_back(stage: Stage) -> None:
    stage.fleet.warm = True
    stage.begin()
    for actor in stage.fleet.actors:
        actor.end(is_reusable=True)
    assert not stage.end().HasField("error")
    assert sorted(stage.fleet.given_back) == ["worker-0", "worker-1"]


def test_only_a_worker_that_says_that_it_may_be_used_again_is_given_back(stage: Stage) -> None:
    stage.begin()
    first, second = stage.fleet.actors
    first.end(is_reusable=True)
    second.end()
    stage.end()
    assert stage.fleet.given_back == ["worker-0"]
    assert second.is_killed


@pytest.mark.parametrize(
    "failure", [ActorDiedError(), ActorUnavailableError("the network is broken", None), RuntimeError("it is busy")]
)
def test_a_warm_worker_that_does_not_come_up_is_replaced_by_a_new_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr(joining, "ANSWER_TIMEOUT_S", 0.05)
    stage.fleet.warm = True
    stage.fleet.failures = {0: failure}
    stage.attempt().start()
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    dead, other, new = stage.fleet.actors
    assert dead.is_killed
    assert new.node_id == dead.node_id
    for actor in (other, new):
        actor.prepare()
    stage.fleet.wait_for(lambda: other.told("form") and new.told("form"))
    assert other.told("form")[0][2:4] == (0, ["address-1", "address-2"])
    stage.close()
    assert not stage.end().HasField("error")


def test_a_used_process_that_hangs_before_it_has_read_the_data_is_replaced_by_a_new_one() -> None:
    stage = Stage(hang_timeout_s=0.2)
    stage.fleet.warm = True
    stage.fleet.hanging = {0: "was waiting for the end of the warm-up of its process for 61 s"}
    stage.attempt().start()
    stage.next_change("worker 0 was waiting for the end of the warm-up of its process for 61 s; a new process takes")
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 3)
    hanging, other, new = stage.fleet.actors
    assert hanging.is_killed
    assert new.node_id == hanging.node_id
    for actor in (other, new):
        actor.prepare()
    stage.fleet.wait_for(lambda: other.told("form") and new.told("form"))
    stage.close()
    assert not stage.end().HasField("error")


def test_a_new_worker_that_does_not_come_up_is_not_replaced(stage: Stage) -> None:
    stage.fleet.failures = {0: ActorDiedError()}
    stage.attempt().start()
    assert stage.end().error.reason == "PLACEMENT_FAILED"
    assert len(stage.fleet.actors) == 2


def test_a_warm_worker_that_dies_while_its_gang_grows_is_replaced_too(stage: Stage) -> None:
    running = stage.begin()
    stage.fleet.warm = True
    stage.fleet.failures = {2: ActorDiedError()}
    running.resize(ResizeGang(revision=1, node_ids=[*stage.order.node_ids, "node-2"]))
    stage.fleet.wait_for(lambda: len(stage.fleet.actors) == 4)
    stage.fleet.actors[3].prepare()
    assert stage.next_change("grown to 3 workers").running_workers == 3


def test_a_warm_worker_that_dies_after_it_came_up_is_lost_as_any_other(stage: Stage) -> None:
    stage.fleet.warm = True
    stage.begin()
    stage.fleet.actors[1].die()
    stage.next_change("1 worker goes on")
    assert len(stage.fleet.actors) == 2


def test_when_all_that_train_have_ended_nobody_waits_for_one_that_still_comes(stage: Stage) -> None:
    joiner = grow(stage, "node-late")
    for actor in stage.fleet.actors[:2]:
        actor.end(is_reusable=True)
    assert not stage.end().HasField("error")
    assert joiner.is_killed
    assert stage.fleet.given_back == ["worker-0", "worker-1"]


def test_a_worker_that_is_ready_when_the_others_have_ended_does_not_train_alone(stage: Stage) -> None:
    joiner = grow(stage, "node-late")
    stage.fleet.actors[0].end(is_reusable=True)
    stage.fleet.wait_for(lambda: joiner.is_killed)
    stage.fleet.actors[1].end(is_reusable=True)
    stage.end()
    assert joiner.told("form") == []


def test_when_the_launcher_cannot_go_on_it_says_why_and_leaves_nobody_behind(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(*args: Any, **how: Any) -> Process:
        if stage.fleet.actors:
            raise RuntimeError("Ray is away")
        return stage.fleet.create("node-0")

    monkeypatch.setattr(stage.fleet, "take", take)
    stage.attempt().start()
    error = stage.end().error
    assert (error.reason, error.message) == ("INTERNAL", "the launcher failed: RuntimeError: Ray is away")
    assert [actor.is_killed for actor in stage.fleet.actors] == [True]
