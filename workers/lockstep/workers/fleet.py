"""The cluster as the launcher sees it: nodes, and the actors of gangs."""

import time
from collections.abc import Sequence
from typing import Any

import ray
import ray.util
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.v1.internal_service_pb2 import ClusterCapacity, NodeCapacity, StartGang
from lockstep.workers.worker import CONTROL_CALLS, Worker

REAP_TIMEOUT_S = 30.0

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
        self._held: dict[str, tuple[float, float]] = {}
        self._taken_by_others: dict[str, tuple[float, float]] = {}

    def reap(self) -> None:
        """Remove every actor that an earlier launcher left behind; returns when they are gone.

        Raises:
            TimeoutError: some would not go.
        """
        deadline = time.monotonic() + REAP_TIMEOUT_S
        while names := ray.util.list_named_actors():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(names)} workers of an earlier launcher do not end: {', '.join(names)}")
            for name in names:
                try:
                    ray.kill(ray.get_actor(name))
                except ValueError:  # it is gone by now
                    continue
            time.sleep(0.05)

    def create(self, order: StartGang) -> list[Actor]:
        """Ask Ray for the actors of a gang, each on its node; they may not be up yet."""
        resources = order.spec.resources
        actors = []
        for rank, node_id in enumerate(order.node_ids):
            self._hold(node_id, resources.cpus_per_worker, resources.gpus_per_worker)
            options = self._actor_class.options(
                name=f"{order.job_id}/{order.attempt}/{rank}",
                lifetime="detached",
                num_cpus=resources.cpus_per_worker,
                num_gpus=resources.gpus_per_worker,
                max_concurrency=1 + CONTROL_CALLS,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            actors.append(options.remote())
        return actors

    def remove(self, order: StartGang, actors: Sequence[Actor]) -> None:
        """End the actors of a gang, whatever they do."""
        resources = order.spec.resources
        for actor, node_id in zip(actors, order.node_ids, strict=True):
            ray.kill(actor)
            self._hold(node_id, -resources.cpus_per_worker, -resources.gpus_per_worker)

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
        held = self._held.get(node_id, (0.0, 0.0))
        self._held[node_id] = held[0] + cpus, held[1] + gpus
