"""The actor: one rank of a gang, a thin shell around the engine."""

import ray

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.engine import Group, Stopped
from lockstep.workers.engine.transport import Endpoint
from lockstep.workers.failures import job_error
from lockstep.workers.report import Reporter, StopFlag
from lockstep.workers.training import device_of, train

CONTROL_CALLS = 2
"""Calls that an actor answers while it trains."""


class Worker:
    """One rank. It trains once and is then removed."""

    def __init__(self) -> None:
        self._endpoint: Endpoint | None = None
        self._listener: StopFlag | None = None
        self._is_stopped = False

    def listen(self) -> str:
        """Open the endpoint of this rank; returns its address."""
        self._endpoint = Endpoint(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return self._endpoint.address

    def train(self, order_bytes: bytes, rank: int, addresses: list[str]) -> bytes | None:
        """Run one rank of an attempt to its end.

        Args:
            order_bytes: the serialized StartGang.
            rank: this worker's rank.
            addresses: the endpoints of all ranks.

        Returns:
            None when all went well or the attempt was stopped, else the serialized JobError.
        """
        order = StartGang.FromString(order_bytes)
        assert self._endpoint is not None
        listener = Reporter(order) if rank == 0 else StopFlag()
        self._listener = listener
        if self._is_stopped:
            listener.stop()
        group: Group | None = None
        try:
            group = Group.join(self._endpoint, rank, addresses, order.attempt_token.encode(), device_of(order.spec))
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
