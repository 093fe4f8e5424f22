"""When the launcher starts agents on nodes."""

from concurrent.futures import Future
from typing import Any

import pytest

from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers.node import agents as agents_module
from lockstep.workers.node.agent import Duty
from lockstep.workers.node.agents import AGAIN_AFTER_S, START_AFTER_S, NodeAgents
from tests.support.played_fleet import PlayedActor


class Timer:
    """A timer that the test lets ring."""

    def __init__(self, delay_s: float, function: Any, arguments: tuple[str]) -> None:
        self.delay_s, self.node_id, self.daemon = delay_s, arguments[0], False
        self.ring = lambda: function(*arguments)

    def start(self) -> None:
        pass


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[Timer]:
    made: list[Timer] = []

    def make(*arguments: Any) -> Timer:
        made.append(Timer(*arguments))
        return made[-1]

    monkeypatch.setattr(agents_module.threading, "Timer", make)
    return made


class Stage:
    """Agents whose actors are played.

    Attributes:
        started: the actors, by node, the newest of each.
    """

    def __init__(self) -> None:
        self.started: dict[str, PlayedActor] = {}
        self.fails = False
        self.agents = NodeAgents(self._start)
        self.agents.begin(lambda node_id: Duty(node_id, "host:1", "token", "ours", LauncherOptions()))

    def _start(self, duty: Duty) -> PlayedActor:
        if self.fails:
            raise RuntimeError("Ray is away")
        self.started[duty.node_id] = PlayedActor()
        return self.started[duty.node_id]


def plan(timers: list[Timer]) -> list[tuple[str, float]]:
    """Which agents are to be started, and when."""
    return [(timer.node_id, timer.delay_s) for timer in timers]


def test_each_node_has_one_agent(timers: list[Timer]) -> None:
    stage = Stage()
    stage.agents.found(["b", "a"])
    stage.agents.found(["a", "b"])
    assert plan(timers) == [("a", START_AFTER_S), ("b", START_AFTER_S)]
    for timer in timers:
        timer.ring()
    stage.agents.found(["a", "b", "c"])
    assert plan(timers)[2:] == [("c", START_AFTER_S)]
    assert [call.method for call in stage.started["a"].asked] == ["run"]


def test_nothing_is_started_before_it_is_said_what_agents_are_told(timers: list[Timer]) -> None:
    NodeAgents().found(["a"])
    assert timers == []


def test_an_agent_that_has_died_is_followed_by_another_after_a_while(timers: list[Timer]) -> None:
    stage = Stage()
    stage.agents.found(["a"])
    timers[0].ring()
    first = stage.started["a"]
    first.dies()
    assert plan(timers)[1:] == [("a", AGAIN_AFTER_S)]
    timers[1].ring()
    assert stage.started["a"] is not first


def test_an_agent_that_cannot_be_started_is_tried_again(timers: list[Timer]) -> None:
    stage = Stage()
    stage.fails = True
    stage.agents.found(["a"])
    timers[0].ring()
    assert plan(timers)[1:] == [("a", AGAIN_AFTER_S)]
    stage.fails = False
    timers[1].ring()
    assert "a" in stage.started


def test_a_node_that_is_gone_gets_no_agent_and_one_that_comes_back_gets_one(timers: list[Timer]) -> None:
    stage = Stage()
    stage.agents.found(["a", "b"])
    timers[0].ring()
    stage.agents.found(["c"])
    stage.started["a"].dies()
    timers[1].ring()
    assert (list(stage.started), len(timers)) == (["a"], 3)
    stage.agents.found(["a"])
    assert plan(timers)[3:] == [("a", START_AFTER_S)]


def test_at_the_end_of_all_jobs_agents_are_retired_and_no_other_is_started(
    timers: list[Timer], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for: list[Future[Any]] = []
    monkeypatch.setattr(agents_module.ray, "wait", lambda calls, **_: waited_for.extend(calls))
    stage = Stage()
    stage.agents.found(["a", "b"])
    timers[0].ring()
    stage.agents.retire()
    assert [call.method for call in stage.started["a"].asked] == ["run", "retire"]
    assert len(waited_for) == 1
    stage.started["a"].dies()
    timers[1].ring()
    stage.agents.found(["a", "b"])
    assert (list(stage.started), len(timers)) == (["a"], 2)
