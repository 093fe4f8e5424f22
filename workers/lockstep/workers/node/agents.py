"""The agents that the launcher keeps: one on each living node."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.workers.failures import in_our_words, is_with_node
from lockstep.workers.node.agent import Duty, NodeAgent

START_AFTER_S = 3.0
"""How long after a node was found its agent is started: a process takes a CPU to come up, and jobs may wait."""
AGAIN_AFTER_S = 10.0
"""How long after an agent has died the next one is started."""
RETIRE_S = 0.3
"""How long agents may take to clear up at the end."""
CALLS = 2
"""Calls that an agent answers at once: the one that lasts as long as it, and the one that ends that."""

log = structlog.get_logger()
Actor = Any


class NodeAgents:
    """Keeps agents as actors of Ray. Nothing depends on them: what fails is logged and tried again.

    Ray is called on threads of their own, as it may block while it is away.

    Args:
        start: starts an agent: by default an actor on its node.
    """

    def __init__(self, start: Callable[[Duty], Actor] | None = None) -> None:
        self._start = start or _start_actor
        self._lock = threading.Lock()
        self._duty_of: Callable[[str], Duty] | None = None
        # None while an agent is to be started.
        self._agents: dict[str, Actor | None] = {}

    def begin(self, duty_of: Callable[[str], Duty]) -> None:
        """Say what the agent of a node is told; none is started before this."""
        self._duty_of = duty_of

    def found(self, node_ids: Iterable[str]) -> None:
        """Have an agent on each of these nodes, which are all that there are, and on no other."""
        if self._duty_of is None:
            return
        with self._lock:
            living = set(node_ids)
            self._agents = {node_id: agent for node_id, agent in self._agents.items() if node_id in living}
            new = sorted(living - self._agents.keys())
            self._agents.update(dict.fromkeys(new))
        for node_id in new:
            self._start_in(START_AFTER_S, node_id)

    def retire(self) -> None:
        """End all of them in order, since no job uses the cluster any more; returns soon."""
        with self._lock:
            agents = [agent for agent in self._agents.values() if agent is not None]
            self._agents, self._duty_of = {}, None
        with contextlib.suppress(Exception):  # the end of this process ends them
            ray.wait([agent.retire.remote() for agent in agents], num_returns=len(agents), timeout=RETIRE_S)

    def _start_in(self, delay_s: float, node_id: str) -> None:
        timer = threading.Timer(delay_s, self._start_one, (node_id,))
        timer.daemon = True
        timer.start()

    def _start_one(self, node_id: str) -> None:
        with self._lock:
            duty_of = self._duty_of
            if duty_of is None or self._agents.get(node_id, "gone") is not None:
                return
        try:
            agent = self._start(duty_of(node_id))
            with self._lock:
                if node_id in self._agents:
                    self._agents[node_id] = agent  # an actor lives as long as its handle
            agent.run.remote().future().add_done_callback(lambda run: self._has_ended(node_id, agent, run))
        except Exception as error:  # whatever Ray raises when it is away
            log.warning("a node agent could not be started", node_id=node_id, error=in_our_words(error))
            self._again(node_id)

    def _has_ended(self, node_id: str, agent: Actor, run: Any) -> None:
        """Called by a thread that Ray needs: it must not call Ray."""
        with self._lock:
            if self._agents.get(node_id) is not agent:  # the node is gone too
                return
        error = run.exception()
        if error is not None and is_with_node(error):  # told by the launcher's look at the nodes
            log.info("a node agent is gone with its node", node_id=node_id)
        else:
            why = in_our_words(error) if error is not None else "it was retired"
            log.warning("a node agent has ended", node_id=node_id, why=why)
        self._again(node_id)

    def _again(self, node_id: str) -> None:
        with self._lock:
            if node_id not in self._agents:
                return
            self._agents[node_id] = None
        self._start_in(AGAIN_AFTER_S, node_id)


def _start_actor(duty: Duty) -> Actor:
    options = ray.remote(NodeAgent).options(
        num_cpus=0,
        num_gpus=0,
        max_concurrency=CALLS,
        max_restarts=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(duty.node_id, soft=False),
    )
    return options.remote(duty)
