"""How ranks on GPUs meet, with NCCL's own part played: there is no GPU here."""

import contextlib
import datetime
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Group, PeerLost
from lockstep.workers.engine.exchange import group as engine_group
from lockstep.workers.engine.exchange import nccl as engine_nccl
from lockstep.workers.engine.exchange.transport import Endpoint, Transport
from lockstep.workers.training import device_of

KEY = b"secret"
OWN_GPU, OTHER_GPU = 7, 8


class Nccl:
    """Plays the making of NCCL's process group, of which a process has one."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.answers.set()
        self.begun, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None
        self.is_made = False
        self.timeouts: list[datetime.timedelta] = []
        self.settings: dict[str, str] = {}

    def init_process_group(self, backend: str, *, rank: int, timeout: datetime.timedelta, **options: Any) -> None:
        self.timeouts.append(timeout)
        self.settings = {name: value for name, value in os.environ.items() if "NCCL" in name}
        self.begun.set()
        assert self.answers.wait(30)
        if self.error is not None:
            raise self.error
        self.is_made = True

    def destroy_process_group(self) -> None:
        self.is_made = False
        self.ended.set()


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nccl]:
    nccl = Nccl()
    for name in engine_nccl.WATCHDOG:  # put back afterwards
        monkeypatch.setenv(name, "3")
    monkeypatch.setattr(dist, "init_process_group", nccl.init_process_group)
    monkeypatch.setattr(dist, "destroy_process_group", nccl.destroy_process_group)
    monkeypatch.setattr(dist, "is_initialized", lambda: nccl.is_made)
    monkeypatch.setattr(engine_nccl, "set_collective_timeout", nccl.timeouts.append)
    monkeypatch.setattr(engine_group, "number_of", lambda device: OWN_GPU)
    yield nccl
    nccl.answers.set()
    for thread in threading.enumerate():
        if thread.name == "nccl":
            thread.join()


@pytest.fixture
def endpoints() -> Iterator[list[Endpoint]]:
    opened = [Endpoint("127.0.0.1") for _ in range(2)]
    yield opened
    for endpoint in opened:
        endpoint.close()


@contextlib.contextmanager
def peer(
    endpoints: list[Endpoint], rank: int, generation: int = 1, port: int | None = 0, gpu: int = OTHER_GPU
) -> Iterator[None]:
    """A rank that meets the other one, says which GPU it has and a port as rank 0 does, and then does nothing."""
    addresses = [endpoint.address for endpoint in endpoints]
    transports: list[Transport] = []

    def meet() -> None:
        transports.append(endpoints[rank].connect(rank, addresses, KEY, generation, timeout_s=10))
        group = Group(rank, 2, transports[0])
        group.gather(torch.tensor([gpu]))
        if port is not None:
            group.fill_in(torch.tensor([port]))

    thread = threading.Thread(target=meet)
    thread.start()
    yield
    thread.join()
    transports[0].close()


def join(endpoints: list[Endpoint], rank: int, generation: int = 1, timeout_s: float = 10) -> Group:
    addresses = [endpoint.address for endpoint in endpoints]
    return Group.join(endpoints[rank], rank, addresses, KEY, "cuda", generation, timeout_s)


def test_ranks_that_meet_leave_again(nccl: Nccl, endpoints: list[Endpoint]) -> None:
    with peer(endpoints, 1):
        group = join(endpoints, 0)
    assert nccl.is_made
    to_meet, to_exchange = nccl.timeouts
    assert to_meet.total_seconds() == 10
    assert to_exchange.total_seconds() > 3600, "a slow rank ends nobody"
    group.leave()
    assert not nccl.is_made


@pytest.mark.parametrize("gpu", [OWN_GPU, engine_nccl.NO_NCCL], ids=["a shared GPU", "a torch without NCCL"])
def test_ranks_that_nccl_does_not_serve_meet_without_it(nccl: Nccl, endpoints: list[Endpoint], gpu: int) -> None:
    with peer(endpoints, 1, port=None, gpu=gpu):
        group = join(endpoints, 0)
    assert not nccl.begun.is_set()
    assert group.holds_up_the_host
    group.leave()


def test_a_gpu_without_memory_is_no_lost_peer() -> None:
    with pytest.raises(torch.OutOfMemoryError), engine_nccl.nccl_failure():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_thread_of_torch_ends_the_process_when_a_peer_dies(nccl: Nccl, endpoints: list[Endpoint]) -> None:
    with peer(endpoints, 1):
        join(endpoints, 0).leave()
    assert nccl.settings["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert nccl.settings["TORCH_NCCL_ENABLE_MONITORING"] == "0"
    assert nccl.settings.items() >= engine_nccl.WATCHDOG.items()


def test_the_settings_of_the_watchdog_are_those_that_this_torch_reads() -> None:
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
    known = header.read_text()
    assert [name for name in engine_nccl.WATCHDOG if f'"{name}"' not in known] == []


def test_a_failure_of_nccl_while_it_is_joined_is_a_lost_peer(nccl: Nccl, endpoints: list[Endpoint]) -> None:
    nccl.error = dist.DistBackendError("NCCL error: remote process exited")
    with peer(endpoints, 1), pytest.raises(PeerLost, match="another worker left: NCCL error: remote process exited"):
        join(endpoints, 0)


def test_a_store_that_is_gone_is_a_lost_peer(nccl: Nccl, endpoints: list[Endpoint]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with peer(endpoints, 0, port=port), pytest.raises(PeerLost, match="another worker"):
        join(endpoints, 1, timeout_s=1)


def test_joining_that_takes_too_long_is_given_up(nccl: Nccl, endpoints: list[Endpoint]) -> None:
    nccl.answers.clear()
    with peer(endpoints, 1), pytest.raises(PeerLost, match="another worker did not join over NCCL in time"):
        join(endpoints, 0, timeout_s=0.5)


def test_joining_breaks_in_a_new_generation_and_what_is_made_too_late_is_undone(
    nccl: Nccl, endpoints: list[Endpoint]
) -> None:
    nccl.answers.clear()

    def supersede() -> None:
        nccl.begun.wait(10)
        endpoints[0].supersede(2)

    threading.Thread(target=supersede).start()
    with peer(endpoints, 1), pytest.raises(PeerLost, match="generation 1 of the workers has ended"):
        join(endpoints, 0)
    with peer(endpoints, 1, 2), pytest.raises(PeerLost, match="NCCL still waits for workers that have left"):
        join(endpoints, 0, 2, timeout_s=0.5)
    nccl.answers.set()
    assert nccl.ended.wait(10)
    with peer(endpoints, 1, 3):
        group = join(endpoints, 0, 3)
    assert nccl.is_made
    group.leave()


@pytest.mark.parametrize(("gpus", "places"), [(1, [0, 0, 0]), (2, [0, 1, 0]), (8, [0, 1, 2])])
def test_ranks_of_torchrun_share_gpus_only_where_there_are_too_few(
    monkeypatch: pytest.MonkeyPatch, gpus: int, places: list[int]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    spec = JobSpec()
    spec.resources.gpus_per_worker = 1
    devices = []
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.append(device_of(spec))
    assert devices == [torch.device("cuda", place) for place in places]
