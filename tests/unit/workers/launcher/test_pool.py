"""Which processes are reused, which make room, which are kept warm, and for how long."""

from typing import Any

import pytest

from lockstep.workers.calls import WARM_UP_S
from lockstep.workers.launcher import pool
from lockstep.workers.launcher.fleet import Process
from lockstep.workers.launcher.pool import LONGEST_SPARE_RETRY_S, QUIET_S, SPARE_RETRY_S
from tests.support.played_fleet import WAIT_S
from tests.support.pool_stage import TTL_S, Make, PoolStage

# Reuse.


def test_a_process_that_was_given_back_is_taken_again(stage: PoolStage) -> None:
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


def test_idle_ones_make_room_no_more_than_needed_and_the_one_that_has_waited_for_longest_first(
    stage: PoolStage,
) -> None:
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


def sharing(stage: PoolStage, *gpu_ids: str) -> list[Process]:
    """Idle workers that hold half of these GPUs."""
    processes = [stage.take(gpus=0.5, cpus=0.5) for _ in gpu_ids]
    for process, gpu_id in zip(processes, gpu_ids, strict=True):
        stage.pool.is_up(process, 1, (gpu_id,))
        stage.passes(0.001)
        stage.pool.give_back(process, 50)
    return processes


def test_idle_ones_leave_the_gpus_that_they_share_to_who_wants_a_whole_one(make: Make) -> None:
    stage = make(a=(9.0, 3.0))
    idle = sharing(stage, "0", "1", "2")
    assert stage.fleet.room()["a"][1] == 1.5, "which is no whole GPU"
    stage.take(gpus=1)
    assert [process.is_ended for process in idle] == [True, False, False]
    assert sum(stage.fleet.room()["a"]) >= 0


def test_a_share_of_another_size_ends_no_idle_one_where_a_gpu_has_room(make: Make) -> None:
    stage = make(a=(9.0, 2.0))
    idle = sharing(stage, "0", "1")
    stage.take(gpus=0.25)
    assert not any(process.is_ended for process in idle)
    stage.take(gpus=0.75)
    assert [process.is_ended for process in idle] == [True, False]


def test_an_idle_one_is_not_taken_that_would_break_a_gpu_which_the_plan_keeps_whole(make: Make) -> None:
    stage = make(a=(9.0, 2.0))
    working = stage.take(gpus=0.5)
    stage.pool.is_up(working, 1, ("0",))
    (idle,) = sharing(stage, "1")
    assert stage.take(gpus=0.5, cpus=0.5) is not idle
    assert idle.is_ended, "or Ray might choose its GPU"


def test_an_idle_one_on_the_gpu_that_is_planned_is_taken(make: Make) -> None:
    stage = make(a=(9.0, 2.0))
    working = stage.take(gpus=0.5)
    stage.pool.is_up(working, 1, ("0",))
    (idle,) = sharing(stage, "0")
    assert stage.take(gpus=0.5, cpus=0.5) is idle


def test_no_spare_is_made_that_would_wait_for_a_gpu(make: Make) -> None:
    stage = make(spares=1, a=(9.0, 2.0))
    halves = [stage.take(gpus=0.5) for _ in range(2)]
    for number, process in enumerate(halves):
        stage.pool.is_up(process, 1, (str(number),))
    whole = stage.take(gpus=1, owner="bob")
    stage.pool.end(whole)
    stage.look(QUIET_S)
    assert len(stage.fleet.actors) == 3


def test_working_ones_are_never_in_the_way(make: Make) -> None:
    stage = make(a=(1.0, 0.0))
    working = stage.take()
    stage.take()
    assert not working.is_ended


def test_a_gang_is_made_of_warm_workers_and_new_ones(stage: PoolStage) -> None:
    warm = stage.idle_ones(2)
    gang = [stage.take() for _ in range(4)]
    assert [process.is_reused for process in gang] == [True, True, False, False]
    assert set(gang[:2]) == set(warm)
    assert stage.fleet.room() == {"a": (0.0, 0.0)}


# How long they wait.


def test_an_idle_one_is_ended_when_its_time_is_over(stage: PoolStage) -> None:
    early, late = stage.idle_ones(2)
    for process in (early, late):
        process.asked_at += 1e6  # they answer
    late.resting_since += 10.0
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


def test_a_process_that_was_ended_cannot_be_given_back(stage: PoolStage) -> None:
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
    stage.look(2 * SPARE_RETRY_S)
    assert len(stage.fleet.actors) == 3


def fail_to_warm_up(stage: PoolStage) -> None:
    stage.spare().fails(ValueError("no kernel image is available"))
    stage.pool.hear(WAIT_S)


def test_why_a_spare_does_not_get_warm_is_logged(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make(spares=1)
    stage.look(QUIET_S)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(pool.log, "warning", lambda event, **facts: told.append(facts), raising=False)
    fail_to_warm_up(stage)
    assert [facts["error"] for facts in told] == ["ValueError: no kernel image is available"]


def test_while_spares_fail_each_is_made_later_than_the_one_before_but_not_for_ever(make: Make) -> None:
    stage = make(spares=1)
    stage.look(QUIET_S)
    for delay_s in (SPARE_RETRY_S, 2 * SPARE_RETRY_S, 4 * SPARE_RETRY_S, *[LONGEST_SPARE_RETRY_S] * 9):
        made = len(stage.fleet.actors)
        fail_to_warm_up(stage)
        if delay_s != LONGEST_SPARE_RETRY_S:
            stage.look(delay_s - 1)
            assert len(stage.fleet.actors) == made
        stage.look(delay_s)
        assert len(stage.fleet.actors) == made + 1
    stage.spare().answers()
    stage.pool.hear(WAIT_S)
    stage.take()
    stage.look(QUIET_S)
    fail_to_warm_up(stage)
    made = len(stage.fleet.actors)
    stage.look(SPARE_RETRY_S)
    assert len(stage.fleet.actors) == made + 1, "since one has got warm it is counted anew"


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
