"""The ranks that train together."""

import contextlib
import hashlib
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from lockstep.workers import awake_clock
from lockstep.workers.engine.errors import RanksDisagree
from lockstep.workers.engine.exchange.nccl import (
    NO_NCCL,
    NcclGroup,
    all_gather_single,
    nccl_failure,
    number_of,
    tcp_store,
)
from lockstep.workers.engine.exchange.staging import Staging, bytes_in_host_memory
from lockstep.workers.engine.exchange.transport import Endpoint, Transport
from lockstep.workers.engine.ledger import Alone, Waits

Via = Literal["auto", "nccl", "host"]
"""How tensors of a device travel: over NCCL, or through host memory and over the transport. "auto": over NCCL, unless
ranks share a GPU, or one of them has a torch without NCCL."""


class Group:
    """One or more ranks; without arguments, one process alone.

    Tensors in host memory travel over the transport, tensors on GPUs over NCCL or, where that does not serve them,
    through host memory.

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
        self._nccl: NcclGroup | None = None
        self._staging: Staging | None = None

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
        via: Via = "auto",
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
            via: how tensors of the device travel, the same on every rank.

        Raises:
            PeerLost: not all ranks came within `timeout_s`.
        """
        transport = endpoint.connect(rank, addresses, key, generation, timeout_s)
        group, device = cls(rank, len(addresses), transport), torch.device(device)
        if group.peers and (device.type == "cuda" or via == "host"):
            try:
                if via == "host" or (via == "auto" and not group._is_served_by_nccl(device)):
                    group._staging = Staging(device)
                else:
                    host = addresses[0].partition("#")[0].rpartition(":")[0]
                    endpoint.when_superseded(generation, group._join_nccl(host, device, timeout_s).abort)
                group.check()
            except BaseException:
                group.leave()
                raise
        return group

    @classmethod
    def from_environment(cls, device: torch.device | str = "cpu") -> "Group":
        """Meet the ranks that torchrun has started; alone if it has not.

        An error that ends one of several ranks is written in one piece, since all write to the same terminal.

        Args:
            device: where this rank computes.

        Raises:
            PeerLost: not all ranks came in time.
        """
        rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if world_size == 1:
            return cls()
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _write_whole
        # torchrun has a store of its own at this address, with room for ours beside its keys.
        master = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = PrefixStore("lockstep", tcp_store(*master))
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
        first = next(iter(tensors.values()))[0]
        if self._staging is not None and first.device.type == self._staging.device.type:
            self._staging.swap(tensors, self._transport)
        elif self._collects(first):
            with nccl_failure():  # NCCL wants all of them at once
                operations = [dist.P2POp(dist.irecv, received, peer) for peer, (_, received) in tensors.items()]
                operations += [dist.P2POp(dist.isend, sent, peer) for peer, (sent, _) in tensors.items()]
                for work in dist.batch_isend_irecv(operations):
                    work.wait()
        else:
            self._transport.swap(
                {
                    peer: (bytes_in_host_memory(sent), bytes_in_host_memory(received))
                    for peer, (sent, received) in tensors.items()
                }
            )

    def all_to_all(self, sent: Tensor, received: Sequence[Tensor]) -> None:
        """Send each rank a row while receiving one from it; one's own is not moved.

        Args:
            sent: for each rank, what it gets, (world_size, n).
            received: for each rank, where what it sends is put; one behind the other in memory.

        Raises:
            PeerLost: a rank left.
        """
        if self._collects(sent):
            sizes = [len(part) for part in received]
            whole = received[0].as_strided((sum(sizes),), (1,))
            with nccl_failure():
                dist.all_to_all_single(whole, sent.view(-1), sizes, [sent.shape[1]] * self.world_size)
        else:
            self.swap({peer: (sent[peer], received[peer]) for peer in self.peers})

    def all_gather(self, table: Tensor) -> None:
        """Complete a contiguous table, (world_size, ...), of which each rank has filled its row.

        Raises:
            PeerLost: a rank left.
        """
        if self._collects(table):
            with nccl_failure():
                all_gather_single(table.view(-1), table[self.rank].view(-1))
        elif self.peers:
            self.swap({peer: (table[self.rank], table[peer]) for peer in self.peers})

    def _collects(self, tensor: Tensor) -> bool:
        """Whether a tensor travels by collectives of torch."""
        return self._nccl is not None and tensor.device.type == self._nccl.device.type

    @property
    def holds_up_the_host(self) -> bool:
        """Whether `swap` returns when all has come; over NCCL it returns when the device was told what to do."""
        return self._nccl is None

    @property
    def waits(self) -> Waits:
        """Counts how long this rank has waited for others in `swap`, in any thread; nothing of it over NCCL."""
        return self._transport if self._transport is not None else Alone()

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
        self.all_gather(table)
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

    def agree(self, what: str, value: bytes | str, error: type[RanksDisagree] = RanksDisagree) -> None:
        """Check that every rank holds the same `value`.

        Raises:
            RanksDisagree: some rank holds another one; raised on every rank, or what `error` is.
            PeerLost: a rank left.
        """
        if self.world_size == 1:
            return
        digest = hashlib.blake2b(value.encode() if isinstance(value, str) else value, digest_size=8).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.int64)
        if not bool((self.gather(mine) == mine).all()):
            shown = value if isinstance(value, str) else digest.hex()
            raise error(f"{what} differs between workers; rank {self.rank} has {shown}")

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
        if self._nccl is not None:
            self._nccl.leave()
            self._nccl = None
        if self._transport is not None:
            self._transport.close()

    def _is_served_by_nccl(self, device: torch.device) -> bool:
        """Whether every rank has NCCL and a GPU of its own; every rank gets the same answer.

        Raises:
            PeerLost: a rank left.
        """
        numbers = self.gather(torch.tensor([number_of(device)], dtype=torch.int64)).view(-1).tolist()
        return NO_NCCL not in numbers and len(set(numbers)) == len(numbers)

    def _join_nccl(self, host: str, device: torch.device, timeout_s: float) -> NcclGroup:
        """Meet over NCCL, where rank 0 listens on its `host`.

        Raises:
            PeerLost: a rank left or did not come in time, or the generation was superseded.
        """
        assert self._transport is not None
        transport, deadline = self._transport, awake_clock.now() + timeout_s
        port = torch.zeros(1, dtype=torch.int64)
        with nccl_failure(), contextlib.ExitStack() as stack:
            listener = None
            if self.rank == 0:  # on this one address, where the store would take them all
                listener = stack.enter_context(socket.create_server((host, 0)))
                port[0] = listener.getsockname()[1]
            self.fill_in(port)
            listener = listener and listener.dup()
        nccl = NcclGroup(self.rank, self.world_size, device, host, int(port), listener, timeout_s)
        nccl.join(lambda sock: transport.wait(sock, deadline))
        self._nccl = nccl
        return nccl


def _write_whole(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Write what has ended this process, at once: Python itself would write each line for itself."""
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))
    sys.stderr.flush()
