"""Ranks that meet and swap over real sockets, each in a thread of its own."""

import contextlib
import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from lockstep.workers.engine import PeerLost
from lockstep.workers.engine.exchange.transport import HELLO, Endpoint, Transport

KEY = b"secret"


@pytest.fixture
def endpoints() -> Iterator[list[Endpoint]]:
    opened = [Endpoint("127.0.0.1") for _ in range(4)]
    yield opened
    for endpoint in opened:
        endpoint.close()


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What each call returned, or the PeerLost that it raised; all run at once."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except PeerLost as error:
            return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(30) for future in [pool.submit(outcome, call) for call in calls]]


@contextlib.contextmanager
def met(endpoints: list[Endpoint], generation: int = 1) -> Iterator[list[Transport]]:
    addresses = [endpoint.address for endpoint in endpoints]
    calls = [
        lambda rank=rank, endpoint=endpoint: endpoint.connect(rank, addresses, KEY, generation, timeout_s=10)
        for rank, endpoint in enumerate(endpoints)
    ]
    transports = together(*calls)
    assert all(isinstance(transport, Transport) for transport in transports), transports
    yield transports
    for transport in transports:
        transport.close()


def swap_with_all(transport: Transport, rank: int, world_size: int, size: int) -> dict[int, bytes]:
    received = {peer: bytearray(size) for peer in range(world_size) if peer != rank}
    mine = memoryview(bytes([rank + 1]) * size)
    transport.swap({peer: (mine, memoryview(buffer)) for peer, buffer in received.items()})
    return {peer: bytes(buffer) for peer, buffer in received.items()}


@pytest.mark.parametrize("size", [1, 1000, 20_000_000])
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET])
def test_every_rank_gets_what_each_other_has_sent(
    endpoints: list[Endpoint], family: socket.AddressFamily, world_size: int, size: int
) -> None:
    if family is socket.AF_INET:  # as on several machines, where nobody answers to the Unix socket's name
        for endpoint in endpoints:
            endpoint.address = endpoint.address.partition("#")[0] + "#elsewhere"
    with met(endpoints[:world_size]) as transports:
        assert {link.socket.family for link in transports[0].links.values()} == {family}
        for _ in range(3):  # what a fast rank sends early belongs to its next swap
            seen = together(
                *(
                    lambda transport=transport, rank=rank: swap_with_all(transport, rank, world_size, size)
                    for rank, transport in enumerate(transports)
                )
            )
            for rank, received in enumerate(seen):
                assert received == {peer: bytes([peer + 1]) * size for peer in range(world_size) if peer != rank}


def test_a_swap_with_a_peer_that_left_fails(endpoints: list[Endpoint]) -> None:
    with met(endpoints[:2]) as (stays, leaves):
        leaves.close()
        with pytest.raises(PeerLost, match="worker 1 left"):
            swap_with_all(stays, 0, 2, 1000)


def test_a_swap_that_waits_fails_when_the_peer_leaves(endpoints: list[Endpoint]) -> None:
    with met(endpoints[:2]) as (stays, leaves):
        threading.Timer(0.1, leaves.close).start()
        with pytest.raises(PeerLost, match="worker 1 left"):
            swap_with_all(stays, 0, 2, 1000)


def test_a_wait_of_a_superseded_generation_breaks(endpoints: list[Endpoint]) -> None:
    with met(endpoints[:2]) as (waits, _):
        threading.Timer(0.1, endpoints[0].supersede, [2]).start()
        with pytest.raises(PeerLost, match="generation 1 of the workers has ended"):
            swap_with_all(waits, 0, 2, 1000)
        with pytest.raises(PeerLost, match="generation 1 of the workers has ended"):
            swap_with_all(waits, 0, 2, 1000)
    with met(endpoints[:2], generation=2) as transports:
        assert together(
            lambda: swap_with_all(transports[0], 0, 2, 8), lambda: swap_with_all(transports[1], 1, 2, 8)
        ) == [{1: b"\x02" * 8}, {0: b"\x01" * 8}]


def test_joining_a_superseded_generation_breaks(endpoints: list[Endpoint]) -> None:
    addresses = [endpoint.address for endpoint in endpoints[:2]]
    for rank in (0, 1):  # one waits for calls, the other for an answer
        threading.Timer(0.1, endpoints[rank].supersede, [2]).start()
        with pytest.raises(PeerLost, match="generation 1 of the workers has ended"):
            endpoints[rank].connect(rank, addresses, KEY)


@contextlib.contextmanager
def silent_host() -> Iterator[str]:
    """An address at which calls are neither answered nor refused, as when a machine is gone."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # a full queue: further calls are dropped
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_calling_a_host_that_is_gone_breaks_when_its_generation_is_superseded(endpoints: list[Endpoint]) -> None:
    with silent_host() as address:
        threading.Timer(0.1, endpoints[1].supersede, [2]).start()
        with pytest.raises(PeerLost, match="generation 1 of the workers has ended"):
            endpoints[1].connect(1, [address, endpoints[1].address], KEY)


def test_a_host_that_is_gone_is_named_when_the_time_is_up(endpoints: list[Endpoint]) -> None:
    with silent_host() as address, pytest.raises(PeerLost, match=f"worker 0 cannot be reached at {address}: "):
        endpoints[1].connect(1, [address, endpoints[1].address], KEY, timeout_s=0.1)


def test_a_caller_that_is_hung_up_on_calls_again_less_and_less_often(endpoints: list[Endpoint]) -> None:
    calls = 0
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            nonlocal calls
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()
                    calls += 1

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(PeerLost, match="worker 0 did not join in time"):
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            endpoints[1].connect(1, [address, endpoints[1].address], KEY, timeout_s=1)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert 2 < calls < 30


def test_ranks_that_come_at_different_times_meet(endpoints: list[Endpoint]) -> None:
    first, second = endpoints[:2]
    addresses = [first.address, second.address]
    came = threading.Event()

    def come_late() -> Transport:
        # Rank 0 still waits in generation 1, where it hangs up on rank 1 of generation 2.
        with contextlib.suppress(PeerLost):
            first.connect(0, addresses, KEY, 1, timeout_s=10)
        came.set()
        return first.connect(0, addresses, KEY, 2, timeout_s=10)

    threading.Timer(0.3, first.supersede, [2]).start()
    transports = together(come_late, lambda: second.connect(1, addresses, KEY, 2, timeout_s=10))
    assert came.is_set()
    assert together(lambda: swap_with_all(transports[0], 0, 2, 8), lambda: swap_with_all(transports[1], 1, 2, 8)) == [
        {1: b"\x02" * 8},
        {0: b"\x01" * 8},
    ]
    for transport in transports:
        transport.close()


def test_a_rank_that_does_not_come_in_time_is_named(endpoints: list[Endpoint]) -> None:
    addresses = [endpoint.address for endpoint in endpoints[:3]]
    with pytest.raises(PeerLost, match=r"worker 1, 2 did not join in time"):
        endpoints[0].connect(0, addresses, KEY, timeout_s=0.1)
    with pytest.raises(PeerLost, match=r"worker 0 did not join in time"):
        endpoints[1].connect(1, addresses, KEY, timeout_s=0.1)


def test_a_rank_whose_process_is_gone_is_named(endpoints: list[Endpoint]) -> None:
    endpoints[0].close()
    place = endpoints[0].address.partition("#")[0]
    with pytest.raises(PeerLost, match=rf"worker 0 cannot be reached at {place}: Connection refused"):
        endpoints[1].connect(1, [endpoints[0].address, endpoints[1].address], KEY, timeout_s=10)


def test_strangers_are_hung_up_on_and_disturb_nobody(endpoints: list[Endpoint]) -> None:
    host, _, port = endpoints[0].address.partition("#")[0].rpartition(":")
    strangers = [socket.create_connection((host, int(port))) for _ in range(3)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: lockstep\r\n\r\n" * 3)
    strangers[1].sendall(b"\x00" * 36)  # as long as a rank's words; the third says nothing
    with met(endpoints[:2]) as transports:
        assert [sorted(transport.links) for transport in transports] == [[1], [0]]
        for stranger in strangers:
            stranger.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(10) == b""
            stranger.close()


def test_waits_elsewhere_are_broken_when_their_generation_is_superseded(endpoints: list[Endpoint]) -> None:
    broken: list[int] = []
    for generation in (1, 2):
        endpoints[0].when_superseded(generation, partial(broken.append, generation))
    endpoints[0].supersede(2)
    assert broken == [1]
    endpoints[0].supersede(3)
    assert broken == [1, 2]


def test_a_rank_that_calls_and_leaves_at_once_disturbs_nobody(endpoints: list[Endpoint]) -> None:
    first, second = endpoints[:2]
    addresses = [first.address, second.address]
    digest = hashlib.sha256(b"1 " + KEY).digest()
    for _ in range(20):  # it called while the first was busy, and died before it was answered
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(f"\0lockstep-{first.address.partition('#')[2]}")
        caller.send(HELLO.pack(digest, 1))
        caller.close()
    transports = together(
        lambda: first.connect(0, addresses, KEY, timeout_s=10), lambda: second.connect(1, addresses, KEY, timeout_s=10)
    )
    assert together(lambda: swap_with_all(transports[0], 0, 2, 8), lambda: swap_with_all(transports[1], 1, 2, 8)) == [
        {1: b"\x02" * 8},
        {0: b"\x01" * 8},
    ]
    for transport in transports:
        transport.close()


def test_another_key_does_not_join(endpoints: list[Endpoint]) -> None:
    addresses = [endpoint.address for endpoint in endpoints[:2]]
    seen = together(
        lambda: endpoints[0].connect(0, addresses, KEY, timeout_s=0.5),
        lambda: endpoints[1].connect(1, addresses, b"guess", timeout_s=0.5),
    )
    assert [str(error) for error in seen] == ["worker 1 did not join in time", "worker 0 did not join in time"]
