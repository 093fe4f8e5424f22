"""The ranks that train together."""

import contextlib
import datetime
import hashlib
import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from lockstep.workers.engine.errors import PeerLost, RanksDisagree
from lockstep.workers.engine.transport import Endpoint, Transport


class Group:
    """One or more ranks; without arguments, one process alone.

    Tensors in host memory travel over the transport, tensors on GPUs over NCCL.

    Args:
        rank: number of this process, from 0.
        world_size: number of processes.
        transport: the connections to the others; None when alone.

    Attributes:
        peers: the other ranks.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, transport: Transport | None = None) -> None:
        self.rank = rank
        self.world_size = world_size
        # In an order in which no two ranks begin with the same one.
        self.peers = [(rank + distance) % world_size for distance in range(1, world_size)]
        self._transport = transport
        self._nccl_store: Store | None = None

    @classmethod
    def join(
        cls,
        endpoint: Endpoint,
        rank: int,
        addresses: Sequence[str],
        key: bytes,
        device: torch.device | str = "cpu",
        generation: int = 1,
        timeout_s: float = 300,
    ) -> "Group":
        """Meet the other ranks.

        Args:
            endpoint: where this process takes connections.
            rank: number of this process, from 0.
            addresses: the endpoints of all ranks, by number.
            key: secret that all ranks of this job know.
            device: where this rank computes.
            generation: number of this membership, growing.
            timeout_s: how long the others may take.

        Raises:
            PeerLost: not all ranks came within `timeout_s`.
        """
        transport = endpoint.connect(rank, addresses, key, generation, timeout_s)
        group = cls(rank, len(addresses), transport)
        if group.peers and torch.device(device).type == "cuda":
            group._join_nccl(addresses[0].partition("#")[0].rpartition(":")[0], torch.device(device), timeout_s)
            endpoint.when_superseded(generation, group._abort_nccl)
        return group

    @classmethod
    def from_environment(cls, device: torch.device | str = "cpu") -> "Group":
        """Meet the ranks that torchrun has started; alone if it has not.

        Args:
            device: where this rank computes.

        Raises:
            PeerLost: not all ranks came in time.
        """
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        # torchrun has a store of its own at this address, with room for ours beside its keys.
        master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = PrefixStore("lockstep", _store(*master, is_master=False))
        with socket.create_connection(master) as connection:
            endpoint = Endpoint(connection.getsockname()[0])
        if rank == 0:
            store.set("key", secrets.token_hex())
        store.set(f"address of {rank}", endpoint.address)
        addresses = [store.get(f"address of {peer}").decode() for peer in range(world_size)]
        return cls.join(endpoint, rank, addresses, store.get("key"), device)

    def swap(self, tensors: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Send the first tensor to each rank while receiving the second from it; all are contiguous.

        Raises:
            PeerLost: one of these ranks left.
        """
        assert self._transport is not None
        if next(iter(tensors.values()))[0].is_cuda:
            with nccl_failure():  # NCCL wants all of them at once
                operations = [dist.P2POp(dist.irecv, received, peer) for peer, (_, received) in tensors.items()]
                operations += [dist.P2POp(dist.isend, sent, peer) for peer, (sent, _) in tensors.items()]
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
        else:
            self._transport.swap({peer: (_bytes(sent), _bytes(received)) for peer, (sent, received) in tensors.items()})

    def check(self) -> None:
        """Raise PeerLost if this membership was superseded: what a collective brought is worthless then."""
        if self._transport is not None:
            self._transport.check()

    def break_off(self) -> None:
        """Have another thread of this rank wait no longer: this group is about to be left."""
        if self._transport is not None:
            self._transport.break_off()

    def gather(self, value: Tensor) -> Tensor:
        """What each rank has, by rank, (world_size, *value.shape), from a contiguous tensor in host memory.

        Raises:
            PeerLost: a rank left.
        """
        table = value.new_empty(self.world_size, *value.shape)
        table[self.rank] = value
        if self.peers:
            self.swap({peer: (value, table[peer]) for peer in self.peers})
        return table

    def hand_over(self, donor: int, receivers: Sequence[int], data: bytes | None) -> bytes | None:
        """Send bytes from `donor` to the `receivers`; returns them on those, None on the others.

        Args:
            donor: rank that sends.
            receivers: ranks that receive.
            data: what to send; only looked at on the donor.

        Raises:
            PeerLost: one of them left.
        """
        assert self._transport is not None
        empty = memoryview(b"")
        if self.rank == donor:
            assert data is not None
            size = memoryview(len(data).to_bytes(8, "little"))
            self._transport.swap(dict.fromkeys(receivers, (size, empty)))
            self._transport.swap({peer: (memoryview(data), empty) for peer in receivers})
        elif self.rank in receivers:
            announced = bytearray(8)
            self._transport.swap({donor: (empty, memoryview(announced))})
            received = bytearray(int.from_bytes(announced, "little"))
            self._transport.swap({donor: (empty, memoryview(received))})
            return bytes(received)
        return None

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
        if not bool((self.gather(mine) == mine).all()):
            shown = value if isinstance(value, str) else digest.hex()
            raise RanksDisagree(f"{what} differs between workers; rank {self.rank} has {shown}")

    def fill_in(self, table: Tensor) -> None:
        """Complete a table in host memory of which each rank has filled some rows and left the others zero.

        Exact in any order, since a number is only ever added to zeros.

        Raises:
            PeerLost: a rank left.
        """
        if self.world_size > 1:
            torch.sum(self.gather(table), dim=0, out=table)

    def leave(self) -> None:
        """Leave the group; harmless when alone or called twice."""
        if self._nccl_store is not None:
            dist.destroy_process_group()
            self._nccl_store = None
        if self._transport is not None:
            self._transport.close()

    def _join_nccl(self, host: str, device: torch.device, timeout_s: float) -> None:
        """Meet over NCCL, at a store that rank 0 opens on its `host`."""
        port = torch.zeros(1, dtype=torch.int64)
        if self.rank == 0:
            listener = socket.create_server((host, 0))  # on this one address, where the store would take them all
            port[0] = listener.getsockname()[1]
            self._nccl_store = _store(host, int(port), is_master=True, master_listen_fd=listener.detach())
        self.fill_in(port)
        if self.rank != 0:
            self._nccl_store = _store(host, int(port), is_master=False)
        with nccl_failure():
            dist.init_process_group(
                "nccl",
                # Closing the store while another rank still joins would leave that rank hanging: the group keeps it.
                store=self._nccl_store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=datetime.timedelta(seconds=timeout_s),
                device_id=device,
            )

    def _abort_nccl(self) -> None:
        """Make collectives that wait for a dead rank return, with garbage; `check` tells that it is."""
        if self._nccl_store is not None:
            with contextlib.suppress(RuntimeError):  # it is being left
                world = dist.group.WORLD
                assert world is not None
                world._get_backend(torch.device("cuda")).abort()


@contextlib.contextmanager
def nccl_failure() -> Iterator[None]:
    """Turn the failure of a collective into PeerLost."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one
        raise PeerLost(f"another worker left: {str(error).splitlines()[0]}") from error


def _store(host: str, port: int, **options: Any) -> Store:
    return dist.TCPStore(host, port, wait_for_workers=False, **options)  # type: ignore[attr-defined]


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
