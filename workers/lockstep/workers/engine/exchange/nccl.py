"""How GPUs meet over NCCL, and how its failures are told."""

import contextlib
import datetime
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import Store
from torch.distributed.distributed_c10d import _set_pg_timeout as set_collective_timeout

from lockstep.workers.engine.errors import PeerLost

COLLECTIVE_TIMEOUT = datetime.timedelta(days=1)
"""NCCL's own limit ends the process. Who waits for a slow rank must not die of it; its watchdog finds a hung one."""

WATCHDOG = {
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # 3, the default, has it throw, which ends the process
    "TORCH_NCCL_ENABLE_MONITORING": "0",  # 1 has the thread that watches over it abort the process
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",  # 1 has that thread dump, wait for minutes, and abort, after any error
    "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC": "0",  # after an error it sleeps for four times this, and who leaves waits
}
"""What keeps torch's watchdog from ending this process when a peer dies: who waits is freed by `abort`, and goes on."""

NO_NCCL = 0
"""In place of a GPU's number, where torch is built without NCCL."""

all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""Older versions of torch have it by the second name alone, newer ones warn of that."""

Wait = Callable[[socket.socket], bool]
"""Waits until a socket can be read; False when the time is up. Raises PeerLost when waiting makes no sense any more."""


class NcclGroup:
    """NCCL's process group, of which there is one at a time.

    Nothing can break its making, which waits for all ranks. So it is made in a thread: whoever is tired of waiting
    goes, and what is made too late is undone.

    Args:
        rank: number of this process.
        world_size: number of processes.
        device: its GPU.
        host: where rank 0 listens.
        port: likewise.
        listener: on rank 0, what listens there.
        timeout_s: how long the others may take.

    Attributes:
        device: the GPU.
    """

    _unfinished: "NcclGroup | None" = None

    def __init__(
        self,
        rank: int,
        world_size: int,
        device: torch.device,
        host: str,
        port: int,
        listener: socket.socket | None,
        timeout_s: float,
    ) -> None:
        self.device = device
        self._ranks: dict[str, Any] = {"rank": rank, "world_size": world_size, "device_id": device}
        self._place, self._listener = (host, port), listener
        self._timeout = datetime.timedelta(seconds=timeout_s)
        os.environ.update(WATCHDOG)  # read when the group is made
        self._lock = threading.Lock()
        self._is_wanted = True
        self._error: BaseException | None = None
        self._ended, self._rope = socket.socketpair()

    def join(self, wait: Wait) -> None:
        """Meet the others.

        Raises:
            PeerLost: they did not come in time, one of them left, or `wait` says that nobody waits for them any more.
        """
        earlier = NcclGroup._unfinished
        try:
            if earlier is not None and not wait(earlier._ended):
                raise PeerLost("NCCL still waits for workers that have left")
            NcclGroup._unfinished = self
            threading.Thread(target=self._make, name="nccl", daemon=True).start()
            if not wait(self._ended):
                raise PeerLost("another worker did not join over NCCL in time")
        except BaseException:
            self.leave()
            raise
        if self._error is not None:
            with nccl_failure():
                raise self._error

    def abort(self) -> None:
        """Make collectives that wait for a dead rank return, with garbage; callable from any thread."""
        with contextlib.suppress(RuntimeError):  # it is being left
            world = dist.group.WORLD
            if world is not None:
                world._get_backend(torch.device("cuda")).abort()

    def leave(self) -> None:
        """Leave the group, or let it be undone once it is made."""
        with self._lock:
            self._is_wanted = False
            if NcclGroup._unfinished is not self:
                self._undo()

    def _make(self) -> None:
        try:
            # Closing the store while another rank still joins would leave that rank hanging: the group keeps it.
            store = tcp_store(*self._place, listener=self._listener, timeout=self._timeout)
            dist.init_process_group("nccl", store=store, timeout=self._timeout, **self._ranks)
            set_collective_timeout(COLLECTIVE_TIMEOUT)
        except BaseException as error:
            self._error = error
        with self._lock:
            NcclGroup._unfinished = None
            if not self._is_wanted:
                self._undo()
        self._rope.close()  # which is what waits see

    def _undo(self) -> None:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):  # whatever it says of dead peers is known
                dist.destroy_process_group()

    def __del__(self) -> None:
        for sock in (self._ended, self._rope, self._listener):
            if sock is not None:
                sock.close()


def tcp_store(host: str, port: int, listener: socket.socket | None = None, **options: Any) -> Store:
    """A client of torch's store, or the store itself on whoever has its listener."""
    if listener is not None:
        options |= {"is_master": True, "master_listen_fd": listener.detach()}
    return dist.TCPStore(host, port, wait_for_workers=False, **options)  # type: ignore[attr-defined]


def number_of(device: torch.device) -> int:
    """A number that no other GPU has, anywhere; the parts of one that is divided (MIG) share it, as NCCL sees them."""
    if not dist.is_nccl_available():
        return NO_NCCL
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return int.from_bytes(hashlib.blake2b(uuid.encode(), digest_size=7).digest(), "little") + 1


@contextlib.contextmanager
def nccl_failure() -> Iterator[None]:
    """Turn the failure of a collective, or of meeting for one, into PeerLost."""
    try:
        yield
    except torch.OutOfMemoryError:  # which meeting again does not mend
        raise
    except (RuntimeError, OSError) as error:  # all errors of torch.distributed are RuntimeErrors
        raise PeerLost(f"another worker left: {str(error).splitlines()[0]}") from error
