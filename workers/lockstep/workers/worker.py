"""The actor: one rank of a gang, a thin shell around the engine."""

import os

import ray
from torch.distributed.distributed_c10d import Store

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.engine import Group, Stopped
from lockstep.workers.engine.group import open_rendezvous, reach_rendezvous
from lockstep.workers.failures import job_error
from lockstep.workers.report import Reporter, StopFlag
from lockstep.workers.training import train

CONTROL_CALLS = 2
"""Calls that an actor answers while it trains."""


class Worker:
    """One rank. It trains once and is then removed."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._listener: StopFlag | None = None
        self._is_stopped = False

    def open_rendezvous(self, world_size: int) -> tuple[str, int]:
        """Open the place where the ranks meet, on this node; returns its host and port."""
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._store, port = open_rendezvous(host, world_size)
        return host, port

    def train(self, order_bytes: bytes, rank: int, world_size: int, host: str, port: int) -> bytes | None:
        """Run one rank of an attempt to its end.

        Args:
            order_bytes: the serialized StartGang.
            rank: this worker's rank.
            world_size: number of workers.
            host: where the ranks meet.
            port: its port.

        Returns:
            None when all went well or the attempt was stopped, else the serialized JobError.
        """
        order = StartGang.FromString(order_bytes)
        if host.startswith("127."):
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        listener = Reporter(order) if rank == 0 else StopFlag()
        self._listener = listener
        if self._is_stopped:
            listener.stop()
        group: Group | None = None
        try:
            store = self._store or reach_rendezvous(host, port, world_size)
            group = Group.join(store, rank, world_size)
            result = train(order.spec, group, listener)
            if isinstance(listener, Reporter):
                listener.finish(result)
        except Stopped:
            if isinstance(listener, Reporter):
                listener.close()
        except Exception as error:
            return job_error(error, rank).SerializeToString()
        finally:
            if group is not None:
                group.leave()
        return None

    def stop(self) -> None:
        """Ask training to stop at the next step boundary."""
        self._is_stopped = True
        if self._listener is not None:
            self._listener.stop()
