"""What the launcher tells of the cluster, as the scheduler counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lockstep.contract.spec.resources import UNITS
from lockstep.server.scheduling.scheduler import Amount, Node, amount, units
from lockstep.v1.internal_service_pb2 import ClusterCapacity, WorkerProcess

_ID_SHOWN = 8


def nodes_of(capacity: ClusterCapacity) -> tuple[Node, ...]:
    """Translate what the launcher says of the cluster.

    Nodes have names of their own from here on, wherever people see them: hosts may be called alike, and then the front
    of the node's id stands behind the name.
    """
    names = _names_of({node.node_id: node.node_name for node in capacity.nodes})
    return tuple(
        Node(
            node.node_id,
            Amount(units(node.cpus), units(node.gpus)),
            Amount(units(max(node.total_cpus, node.cpus)), units(max(node.total_gpus, node.gpus))),
            names[node.node_id],
        )
        for node in capacity.nodes
    )


def usable_on(nodes: Iterable[Node]) -> tuple[float, float]:
    """Sum the CPUs and the GPUs that Lockstep may use."""
    usable = sum((node.usable for node in nodes), start=Amount())
    return usable.cpu / UNITS, usable.gpu / UNITS


def _names_of(hosts: Mapping[str, str]) -> dict[str, str]:
    """A name for each node, by id, from those of the hosts: no two have the same."""
    names = {node_id: host or node_id for node_id, host in hosts.items()}
    for length in (*range(_ID_SHOWN, max(map(len, names), default=0), _ID_SHOWN), None):
        times = Counter(names.values())
        if len(times) == len(names):
            break
        for node_id, name in names.items():
            if times[name] > 1:
                names[node_id] = f"{hosts[node_id]}-{node_id[:length]}"
    return names


def warm_on(processes: Iterable[WorkerProcess]) -> Counter[tuple[str, Amount]]:
    """Count the idle workers by node and by what each holds."""
    idle = (process for process in processes if process.HasField("idle_since"))
    return Counter((process.node_id, amount(process.cpus, process.gpus)) for process in idle)


def single_node(cpus: float, gpus: float) -> tuple[Node, ...]:
    """Describe an embedded cluster before it is up."""
    amount = Amount(int(cpus * UNITS), int(gpus * UNITS))
    return (Node("embedded", amount, amount),)
