"""The ranks that train together."""

import contextlib
import datetime
import hashlib
import socket
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from lockstep.workers.engine.errors import PeerLost, RanksDisagree


def open_rendezvous(host: str, world_size: int) -> tuple[Store, int]:
    """Open a place where `world_size` ranks can meet, on a free port of `host`; returns it and the port."""
    listener = socket.create_server((host, 0))  # on this one address, where TCPStore would take them all
    port: int = listener.getsockname()[1]
    return _tcp_store(host, port, world_size, is_master=True, master_listen_fd=listener.detach()), port


def reach_rendezvous(host: str, port: int, world_size: int) -> Store:
    """The place that another rank has opened."""
    return _tcp_store(host, port, world_size, is_master=False)


def _tcp_store(host: str, port: int, world_size: int, **options: Any) -> Store:
    return dist.TCPStore(host, port, world_size, wait_for_workers=False, **options)  # type: ignore[attr-defined]


@contextlib.contextmanager
def peer_loss() -> Iterator[None]:
    """Turn the failure of a collective into PeerLost."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and gloo's own errors are RuntimeErrors
        raise PeerLost(f"another worker left: {str(error).splitlines()[0]}") from error


class Group:
    """A process group of one or more ranks, or one process alone.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        peers: the other ranks.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, store: Store | None = None) -> None:
        self.rank = rank
        self.world_size = world_size
        # In an order in which no two ranks begin with the same one.
        self.peers = [(rank + distance) % world_size for distance in range(1, world_size)]
        # Closing the store while another rank still joins would leave that rank hanging.
        self._store = store

    @classmethod
    def join(cls, store: Store, rank: int, world_size: int, timeout_s: float = 300) -> "Group":
        """Meet the other ranks at `store`: gloo for tensors on the CPU, NCCL for those on GPUs.

        Raises:
            PeerLost: not all ranks came within `timeout_s`.
        """
        if world_size == 1:
            return cls(store=store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with peer_loss():
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=world_size,
                timeout=datetime.timedelta(seconds=timeout_s),
            )
        return cls(rank, world_size, store)

    def agree(self, what: str, value: bytes | str) -> None:
        """Check that every rank holds the same `value`.

        Raises:
            RanksDisagree: some rank holds another one; raised on every rank.
            PeerLost: a rank left.
        """
        if self.world_size == 1:
            return
        digest = hashlib.blake2b(value.encode() if isinstance(value, str) else value, digest_size=8).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.int64)
        all_digests = torch.empty(self.world_size, dtype=torch.int64)
        with peer_loss():
            dist.all_gather_into_tensor(all_digests, mine)
        if not bool((all_digests == all_digests[0]).all()):
            shown = value if isinstance(value, str) else digest.hex()
            raise RanksDisagree(f"{what} differs between workers; rank {self.rank} has {shown}")

    def fill_in(self, table: Tensor) -> None:
        """Complete a table in place of which each rank has filled some rows and left the others zero.

        Exact with any all-reduce, since a number is only ever added to zeros.

        Raises:
            PeerLost: a rank left.
        """
        if self.world_size > 1:
            with peer_loss():
                dist.all_reduce(table)

    def leave(self) -> None:
        """Leave the group; harmless when alone or called twice."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
        self._store = None
