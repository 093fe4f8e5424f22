"""The cluster as the launcher sees it: nodes, and the actors on them."""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
import ray.exceptions
import ray.util
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.contract.spec.resources import gpus_of
from lockstep.v1.internal_service_pb2 import ClusterCapacity, NodeCapacity
from lockstep.v1.job_spec_pb2 import ResourcesSpec
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers import awake_clock
from lockstep.workers.actor.worker import Worker
from lockstep.workers.calls import ANSWER_TIMEOUT_S, CONTROL_CALLS, Description
from lockstep.workers.launcher.gpu_room import EXACT
from lockstep.workers.launcher.log_sweeps import LogSweeps
from lockstep.workers.node.agents import NodeAgents

ASK_AGAIN_AFTER_S = 0.5
"""How long after a call could not reach a worker it is made again."""

GPU = 1
"""The number of that resource in a shape."""

Actor = Any
"""A handle of a Worker; Ray gives handles no type."""


class Shape(NamedTuple):
    """What a worker holds of its node, as Ray counts it."""

    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def of(cls, resources: ResourcesSpec) -> "Shape":
        return cls(resources.cpus_per_worker, gpus_of(resources))

    def lacking(self, room: tuple[float, float]) -> list[int]:
        """Of which resources there is not enough, by number."""
        return [kind for kind, need in enumerate(self) if need > room[kind] + EXACT]


@dataclass(eq=False)
class Process:
    """A worker's process.

    Attributes:
        name: of its actor.
        actor: its handle.
        node_id: Ray's id of its node.
        shape: what it holds there.
        owner: of the jobs that it has worked for; None when it has for nobody.
        pid: its number on its node; 0 while it is not known.
        gpu_ids: the GPUs that it holds, as Ray names them; none while that is not known.
        memory_bytes: what it takes, when it was idle last.
        data_bytes: what data in it takes, likewise.
        idle_since: since when it waits for a job, as time.time() tells; None when it does not.
        resting_since: the same as awake.now() tells, which no setting of a clock changes.
        asked_at: since when it owes an answer while it is idle, as awake.now() tells.
        is_warm: it has done what takes long the first time.
        assignment: what it works for, by name; empty when it works for nobody.
        is_reused: it was there before that.
    """

    name: str
    actor: Actor
    node_id: str
    shape: Shape
    owner: str | None = None
    pid: int = 0
    gpu_ids: tuple[str, ...] = ()
    memory_bytes: int = 0
    data_bytes: int = 0
    idle_since: float | None = None
    resting_since: float = 0.0
    asked_at: float = 0.0
    is_warm: bool = False
    assignment: str = ""
    is_reused: bool = False
    is_ended: bool = field(default=False, init=False)


class Fleet:
    """All actors in Lockstep's Ray namespace, which belong to this launcher alone.

    Args:
        address: address of the Ray cluster.
        namespace: Ray namespace of this coordinator's actors.
        options: what the operator has set.

    Attributes:
        log_sweeps: brings in what dead workers have printed.
        agents: tell what the nodes do.

    Raises:
        ConnectionError: there is no such cluster.
    """

    def __init__(self, address: str, namespace: str, options: LauncherOptions) -> None:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
        )
        self._actor_class = ray.remote(Worker)
        self._options = options
        self.log_sweeps = LogSweeps(namespace)
        self.agents = NodeAgents()
        # Resources by node, as (CPUs, GPUs): what actors of this fleet hold, and what is not held by others.
        self._lock = threading.Lock()
        self._held: dict[str, tuple[float, float]] = {}
        self._usable: dict[str, tuple[float, float]] = {}
        self._taken_by_others: dict[str, tuple[float, float]] = {}

    def inventory(self, epoch: int, reports_address: str) -> list[tuple[Process | None, Actor, Description | None]]:
        """Every actor that an earlier launcher left: its process, its handle and what it says.

        Process and description are None for one that says nothing.
        """
        actors: dict[str, Actor] = {}
        for name in ray.util.list_named_actors():
            with contextlib.suppress(ValueError):  # it is gone by now
                actors[name] = ray.get_actor(name)
        answers = ask_all(actors, lambda actor: actor.describe.remote(epoch, reports_address))
        return [(self._adopt(name, actor, answers[name]), actor, answers[name]) for name, actor in actors.items()]

    def _adopt(self, name: str, actor: Actor, told: Description | None) -> Process | None:
        if told is None:
            return None
        shape = Shape(told.cpus, told.gpus)
        process = Process(name, actor, told.node_id, shape, told.owner, told.pid, told.gpu_ids, is_warm=True)
        self._hold(process, 1)
        return process

    def create(self, shape: Shape, node_id: str) -> Process:
        """Ask Ray for an actor on a node; it may not be up yet."""
        name = f"worker-{secrets.token_hex(8)}"
        options = self._actor_class.options(
            name=name,
            lifetime="detached",
            num_cpus=shape.cpus,
            num_gpus=shape.gpus,
            max_concurrency=CONTROL_CALLS,
            max_restarts=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        process = Process(name, options.remote(self._options, *shape), node_id, shape)
        self._hold(process, 1)
        return process

    def end(self, process: Process) -> None:
        """End a process, whatever it does, and count what it held as free; harmless when it was ended before."""
        with self._lock:
            was_ended, process.is_ended = process.is_ended, True
        if not was_ended:
            self._hold(process, -1)
            if process.assignment:  # it may not have delivered all that it has printed
                self.log_sweeps.soon(process.node_id)
        self.kill(process.actor)

    def kill(self, actor: Actor) -> None:
        """End an actor, whatever it does; harmless when it has ended."""
        ray.kill(actor)

    def room(self) -> dict[str, tuple[float, float]]:
        """CPUs and GPUs of each node that nobody holds, as far as is known."""
        with self._lock:
            nothing = (0.0, 0.0)
            return {
                node_id: (usable[0] - held[0], usable[1] - held[1])
                for node_id, usable in self._usable.items()
                for held in [self._held.get(node_id, nothing)]
            }

    def usable_gpus(self, node_id: str) -> float:
        """GPUs of a node that others do not hold, as far as is known."""
        with self._lock:
            return self._usable.get(node_id, (0.0, 0.0))[1]

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
            cpus, gpus = self._without_others(node_id, (totals[0], totals[1]), (free[0], free[1]))
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
        with self._lock:
            self._usable = {node.node_id: (node.cpus, node.gpus) for node in nodes}
        self.log_sweeps.found(node.node_id for node in nodes)
        self.agents.found(node.node_id for node in nodes)
        return ClusterCapacity(nodes=nodes)

    def _without_others(
        self, node_id: str, total: tuple[float, float], free: tuple[float, float]
    ) -> tuple[float, float]:
        """Total less what others hold. Ray's view lags behind, so only what is seen twice counts as held by others."""
        held = self._held.get(node_id, (0.0, 0.0))
        taken = tuple(round(max(0.0, t - f - h), 4) for t, f, h in zip(total, free, held, strict=True))
        before = self._taken_by_others.get(node_id, taken)
        self._taken_by_others[node_id] = (taken[0], taken[1])
        return total[0] - min(taken[0], before[0]), total[1] - min(taken[1], before[1])

    def _hold(self, process: Process, sign: int) -> None:
        with self._lock:  # each attempt has a thread
            held = self._held.get(process.node_id, (0.0, 0.0))
            cpus, gpus = process.shape
            self._held[process.node_id] = held[0] + sign * cpus, held[1] + sign * gpus


def ask_all(actors: Mapping[str, Actor], ask: Callable[[Actor], Any]) -> dict[str, Description | None]:
    """What each actor says of itself within ANSWER_TIMEOUT_S; None for one that says nothing.

    One that cannot be reached is asked again: its connection may come back.
    """
    deadline = awake_clock.now() + ANSWER_TIMEOUT_S
    answers: dict[str, Description | None] = {}
    while unanswered := {name: ask(actor) for name, actor in actors.items() if name not in answers}:
        ray.wait(list(unanswered.values()), num_returns=len(unanswered), timeout=max(0.0, deadline - awake_clock.now()))
        is_last = awake_clock.now() >= deadline
        for name, call in unanswered.items():
            try:
                answers[name] = Description(*ray.get(call, timeout=0))
            except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
                if is_last:
                    answers[name] = None
            except (ray.exceptions.RayError, TypeError):  # TypeError: it is of another version
                answers[name] = None
        if len(answers) < len(actors):
            time.sleep(ASK_AGAIN_AFTER_S)
    return answers
