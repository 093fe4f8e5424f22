"""What the agents of nodes measure, as users see it."""

import subprocess
from collections.abc import Callable

from lockstep.client import NodeTelemetry
from tests.integration.conftest import LOCKSTEP, Server


def telemetry_of(server: Server, is_so: Callable[[NodeTelemetry], object]) -> NodeTelemetry:
    """Wait until the only node tells something."""
    found: list[NodeTelemetry] = []

    def has_come() -> bool:
        nodes = client.list_nodes()
        assert len(nodes) <= 1
        node = nodes[0] if nodes else None
        if node is not None and node.telemetry is not None and is_so(node.telemetry):
            found.append(node.telemetry)
        return bool(found)

    with server.client() as client:
        server.wait_until(has_come)
    return found[0]


def shown(server: Server) -> list[str]:
    """What `lockstep nodes` prints."""
    command = [LOCKSTEP, "--target", server.addresses()["grpc_address"], "nodes"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return run.stdout.splitlines()


def test_nodes_shows_what_the_machine_does(server: Server) -> None:
    host = telemetry_of(server, lambda told: told.host.cpu_utilization_ratio is not None).host
    assert host.memory_used_bytes is not None
    assert host.memory_total_bytes is not None
    assert 0 < host.memory_used_bytes < host.memory_total_bytes
    assert any(line.startswith("  CPU ") and " %, memory " in line for line in shown(server))
