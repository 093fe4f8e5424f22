"""The cluster as the launcher sees it: nodes, and the actors of gangs."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import ray.exceptions
import ray.util
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.v1.internal_service_pb2 import ClusterCapacity, NodeCapacity, StartGang
from lockstep.workers.worker import CONTROL_CALLS, Description, Worker

ANSWER_TIMEOUT_S = 5.0
"""How long a worker of an earlier launcher may take to say who it is; a hung one says nothing."""
ASK_AGAIN_AFTER_S = 0.5
"""How long after a call could not reach a worker it is made again."""

Actor = Any
"""A handle of a Worker; Ray gives handles no type."""


class Fleet:
    """All actors in Lockstep's Ray namespace, which belong to this launcher alone.

    Args:
        address: address of the Ray cluster.
        namespace: Ray namespace of this coordinator's actors.

    Raises:
        ConnectionError: there is no such cluster.
    """

    def __init__(self, address: str, namespace: str) -> None:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
        )
        self._actor_class = ray.remote(Worker)
        # Resources by node that actors of this fleet hold, as (CPUs, GPUs).
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, float]] = {}
        self._taken_by_others: dict[str, tuple[float, float]] = {}

    def inventory(self, epoch: int, coordinator_address: str) -> list[tuple[str, Actor, Description | None]]:
        """Every actor that an earlier launcher left: its name, its handle and what it says; None if it says nothing."""
        actors: dict[str, Actor] = {}
        for name in ray.util.list_named_actors():
            with contextlib.suppress(ValueError):  # it is gone by now
                actors[name] = ray.get_actor(name)
        answers = ask_all(actors, lambda actor: actor.describe.remote(epoch, coordinator_address))
        return [(name, actor, answers[name]) for name, actor in actors.items()]

    def create(self, order: StartGang, node_id: str, number: int) -> Actor:
        """Ask Ray for an actor on a node; it may not be up yet."""
        resources = order.spec.resources
        self.adopt(order, node_id)
        return self._actor_class.options(
            name=f"{order.job_id}/{order.attempt}/{number}",
            lifetime="detached",
            num_cpus=resources.cpus_per_worker,
            num_gpus=resources.gpus_per_worker,
            max_concurrency=CONTROL_CALLS,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote()

    def adopt(self, order: StartGang, node_id: str) -> None:
        """Count what a worker holds on its node."""
        self._hold(node_id, order.spec.resources.cpus_per_worker, order.spec.resources.gpus_per_worker)

    def release(self, order: StartGang, node_id: str) -> None:
        """Count it no more."""
        self._hold(node_id, -order.spec.resources.cpus_per_worker, -order.spec.resources.gpus_per_worker)

    def kill(self, actor: Actor) -> None:
        """End an actor, whatever it does; harmless when it has ended."""
        ray.kill(actor)

    def capacity(self) -> ClusterCapacity:
        """What every living node has, less what others on the same cluster hold."""
        available = available_resources_per_node()  # type: ignore[no-untyped-call]
        nodes: list[NodeCapacity] = []
        for node in sorted(ray.nodes(), key=lambda node: str(node["NodeID"])):  # type: ignore[no-untyped-call]
            node_id = node["NodeID"]
            if not node["Alive"] or node_id not in available:
                continue
            totals = [float(node["Resources"].get(kind, 0.0)) for kind in ("CPU", "GPU")]
            free = [float(available[node_id].get(kind, 0.0)) for kind in ("CPU", "GPU")]
            cpus, gpus = self._usable(node_id, (totals[0], totals[1]), (free[0], free[1]))
            nodes.append(
                NodeCapacity(
                    node_id=node_id,
                    node_name=node["NodeManagerHostname"],
                    cpus=cpus,
                    gpus=gpus,
                    total_cpus=totals[0],
                    total_gpus=totals[1],
                )
            )
        return ClusterCapacity(nodes=nodes)

    def _usable(self, node_id: str, total: tuple[float, float], free: tuple[float, float]) -> tuple[float, float]:
        """Total less what others hold. Ray's view lags behind, so only what is seen twice counts as held by others."""
        held = self._held.get(node_id, (0.0, 0.0))
        taken = tuple(round(max(0.0, t - f - h), 4) for t, f, h in zip(total, free, held, strict=True))
        before = self._taken_by_others.get(node_id, taken)
        self._taken_by_others[node_id] = (taken[0], taken[1])
        return total[0] - min(taken[0], before[0]), total[1] - min(taken[1], before[1])

    def _hold(self, node_id: str, cpus: float, gpus: float) -> None:
        with self._lock:  # each attempt has a thread
            held = self._held.get(node_id, (0.0, 0.0))
            self._held[node_id] = held[0] + cpus, held[1] + gpus


def ask_all(actors: Mapping[str, Actor], ask: Callable[[Actor], Any]) -> dict[str, Description | None]:
    """What each actor says of itself within ANSWER_TIMEOUT_S; None for one that says nothing.

    One that cannot be reached is asked again: its connection may come back.
    """
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    answers: dict[str, Description | None] = {}
    while unanswered := {name: ask(actor) for name, actor in actors.items() if name not in answers}:
        ray.wait(list(unanswered.values()), num_returns=len(unanswered), timeout=max(0.0, deadline - time.monotonic()))
        is_last = time.monotonic() >= deadline
        for name, call in unanswered.items():
            try:
                answers[name] = Description(*ray.get(call, timeout=0))
            except ray.exceptions.ActorUnavailableError:
                if is_last:
                    answers[name] = None
            except (ray.exceptions.RayError, TimeoutError):
                answers[name] = None
        if len(answers) < len(actors):
            time.sleep(ASK_AGAIN_AFTER_S)
    return answers
