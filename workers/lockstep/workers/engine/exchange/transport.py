"""Connections between every two ranks, for what lies in host memory: Unix sockets on one machine, else TCP.

A swap runs in the thread that calls it, and waits in one `poll` for all peers. So a small one takes a tenth of the time
of a gloo collective, which wakes other threads; a peer's death is seen at once, as the end of its connection; and
another thread can break a wait. Measurements are in docs/design/transport.md.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from lockstep.workers import awake_clock
from lockstep.workers.engine.errors import PeerLost

BACKLOG = 1024
HELLO = struct.Struct("!32sI")
"""What a rank says when it connects: the digest of the key, and its number."""
WELCOME = b"\x01"
REDIAL_AFTER_S, LONGEST_REDIAL_S = 0.01, 0.2
"""How long a caller that was hung up on waits, at first and at most: twice as long each time."""
UNIX_BUFFER_BYTES = 1024 * 1024
# A peer whose machine is gone says nothing; the kernel gives it up after so long.
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 10, 5, 4
UNACKNOWLEDGED_LIMIT_MS = 30_000


class Endpoint:
    """Where one process takes connections, in every generation that it belongs to.

    Args:
        host: name or address of this machine that the other ranks can reach.

    Attributes:
        address: where it listens, "host:port", and behind a "#" the name of its Unix socket where there is one.
    """

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listeners = [socket.create_server((host, 0), family=family, backlog=BACKLOG)]
        self.address = f"{host}:{self._listeners[0].getsockname()[1]}"
        if sys.platform == "linux":
            name = secrets.token_hex(16)
            self._listeners.append(socket.socket(socket.AF_UNIX))
            self._listeners[1].bind(_abstract(name))
            self._listeners[1].listen(BACKLOG)
            self.address += f"#{name}"
        for listener in self._listeners:
            listener.setblocking(False)
        self._wakeup, self._notifier = socket.socketpair()
        self._wakeup.setblocking(False)
        self._newest = 0
        self._breakers: list[tuple[int, Callable[[], None]]] = []

    def supersede(self, generation: int) -> None:
        """Break every wait of an earlier generation, now and later; callable from any thread."""
        if generation > self._newest:
            self._newest = generation
            with contextlib.suppress(OSError):  # closed: nobody waits any more
                self._notifier.send(b"\x01")
            while self._breakers and self._breakers[0][0] < generation:
                self._breakers.pop(0)[1]()

    def when_superseded(self, generation: int, break_wait: Callable[[], None]) -> None:
        """Have waits of a generation that are not the transport's broken too, by the thread that supersedes it."""
        self._breakers.append((generation, break_wait))

    def connect(
        self, rank: int, addresses: Sequence[str], key: bytes, generation: int = 1, timeout_s: float = 300
    ) -> "Transport":
        """Meet the other ranks.

        Args:
            rank: number of this process.
            addresses: the endpoints of all ranks, by number.
            key: secret that all ranks of this job know.
            generation: number of this membership, growing.
            timeout_s: how long the others may take.

        Raises:
            PeerLost: a rank is not there, did not come in time, or the generation was superseded.
        """
        deadline = awake_clock.now() + timeout_s
        digest = hashlib.sha256(b"%d %s" % (generation, key)).digest()
        transport = Transport(self, generation)
        try:
            # Each rank calls those before it and then answers those behind it, so that rank 0 gets all going.
            for peer in range(rank):
                transport.links[peer] = self._dial(peer, addresses[peer], HELLO.pack(digest, rank), transport, deadline)
            self._answer(set(range(rank + 1, len(addresses))), digest, transport, deadline)
        except OSError as error:
            transport.close()
            raise PeerLost(f"a worker left while it joined: {error.strerror or error}") from error
        except BaseException:
            transport.close()
            raise
        return transport

    def close(self) -> None:
        """Take no more connections."""
        for sock in (*self._listeners, self._wakeup, self._notifier):
            sock.close()

    def wait(self, generation: int, sockets: Sequence[tuple[socket.socket, int]], deadline: float | None) -> bool:
        """Wait until one of the sockets is ready for its poll events; False when the deadline has passed.

        Raises:
            PeerLost: the generation was superseded.
        """
        poll = select.poll()
        for sock, events in sockets:
            poll.register(sock, events)
        poll.register(self._wakeup, select.POLLIN)
        if deadline is None:
            ready = poll.poll()
        else:
            left_s = deadline - awake_clock.now()
            while not (ready := poll.poll(1e3 * max(0.0, left_s))) and (left_s := deadline - awake_clock.now()) > 0:
                pass  # this process was stopped meanwhile, and its peers may have been, too
        if any(descriptor == self._wakeup.fileno() for descriptor, _ in ready):
            self._wakeup.recv(4096)
        self.check(generation)
        return bool(ready)

    def check(self, generation: int) -> None:
        """Raise PeerLost if the generation was superseded."""
        if generation < self._newest:
            raise PeerLost(f"generation {generation} of the workers has ended")

    def _dial(self, peer: int, address: str, hello: bytes, transport: "Transport", deadline: float) -> "Link":
        """Connect to a peer, which may still be in an earlier generation and hang up on this one."""
        pause_s = REDIAL_AFTER_S
        while True:
            link = Link(peer, self._call(peer, address, transport.generation, deadline))
            try:
                link.socket.send(hello)
                while not (answer := link.receive_some(len(WELCOME))):
                    if not self.wait(transport.generation, [(link.socket, select.POLLIN)], deadline):
                        raise PeerLost(f"worker {peer} did not join in time")
                if answer == WELCOME:
                    return link
            except OSError:  # it hung up, or its machine has vanished
                pass
            except BaseException:
                link.socket.close()
                raise
            link.socket.close()
            if awake_clock.now() > deadline:
                raise PeerLost(f"worker {peer} did not join in time")
            self.wait(transport.generation, [], awake_clock.now() + pause_s)
            pause_s = min(2 * pause_s, LONGEST_REDIAL_S)

    def _call(self, peer: int, address: str, generation: int, deadline: float) -> socket.socket:
        """A connection to the endpoint at an address; a host that is gone is waited for like anything else."""
        place, _, name = address.partition("#")
        if name and sys.platform == "linux":
            # The name is random: whoever answers to it is the one, on this machine and in this network namespace.
            sock = _tuned(socket.socket(socket.AF_UNIX))
            if sock.connect_ex(_abstract(name)) == 0:
                return sock
            sock.close()
        host, _, port = place.rpartition(":")
        sock = _tuned(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET))
        try:
            limit = min(deadline, awake_clock.now() + UNACKNOWLEDGED_LIMIT_MS / 1e3)
            while (error := sock.connect_ex((host, int(port)))) in (errno.EINPROGRESS, errno.EALREADY):
                if not self.wait(generation, [(sock, select.POLLOUT)], limit):
                    error = errno.ETIMEDOUT
                    break
            if error not in (0, errno.EISCONN):
                raise PeerLost(f"worker {peer} cannot be reached at {place}: {os.strerror(error)}")
        except BaseException as failure:
            sock.close()
            if isinstance(failure, OSError):  # the name of the host is unknown, for instance
                raise PeerLost(f"worker {peer} cannot be reached at {place}: {failure.strerror}") from failure
            raise
        return sock

    def _answer(self, missing: set[int], digest: bytes, transport: "Transport", deadline: float) -> None:
        """Take connections until no peer is missing; whoever does not know the key is hung up on."""
        callers: dict[socket.socket, bytes] = {}
        try:
            while missing:
                waiting = [(sock, select.POLLIN) for sock in (*self._listeners, *callers)]
                if not self.wait(transport.generation, waiting, deadline):
                    absent = ", ".join(map(str, sorted(missing)))
                    raise PeerLost(f"worker {absent} did not join in time")
                self._accept(callers)
                for sock in list(callers):
                    hello = _hello(sock, callers)
                    if hello is None:
                        continue
                    peer = _rank_of(hello, digest)
                    if peer in missing and _welcome(sock):
                        transport.links[peer] = Link(peer, sock)
                        missing.discard(peer)
                    else:
                        sock.close()
        finally:
            for sock in callers:
                sock.close()

    def _accept(self, callers: dict[socket.socket, bytes]) -> None:
        for listener in self._listeners:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock, _ = listener.accept()
                    callers[_tuned(sock)] = b""


class Link:
    """The connection to one peer.

    Args:
        peer: its rank.
        sock: a connected, non-blocking socket.
    """

    def __init__(self, peer: int, sock: socket.socket) -> None:
        self.peer, self.socket = peer, sock
        self._unsent = self._missing = memoryview(b"")

    def begin(self, outgoing: memoryview, incoming: memoryview) -> None:
        """Note what `advance` shall send and receive."""
        self._unsent, self._missing = outgoing, incoming

    def advance(self) -> bool:
        """Send and receive what the kernel takes and has; whether all is done.

        Raises:
            PeerLost: the peer is gone.
        """
        try:
            try:
                while self._unsent:
                    self._unsent = self._unsent[self.socket.send(self._unsent) :]
            except BlockingIOError:
                pass
            while self._missing:
                size = self.socket.recv_into(self._missing)
                if not size:
                    raise PeerLost(f"worker {self.peer} left")
                self._missing = self._missing[size:]
        except BlockingIOError:
            return False
        except OSError as error:
            raise PeerLost(f"worker {self.peer} left: {error.strerror}") from error
        return not self._unsent

    def receive_some(self, size: int) -> bytes:
        """Up to `size` bytes; none if none have come yet.

        Raises:
            ConnectionError: the peer hung up.
        """
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return b""
        if not data:
            raise ConnectionResetError("the peer hung up")
        return data

    @property
    def events(self) -> int:
        """What to poll for before the next `advance`."""
        return (select.POLLIN if self._missing else 0) | (select.POLLOUT if self._unsent else 0)


class Transport:
    """The connections of one rank in one generation; used by one thread at a time.

    Args:
        endpoint: the process's endpoint.
        generation: number of the membership.

    Attributes:
        links: the connection to each peer.
        waited_s: how long `swap` has waited in all, in seconds.
    """

    def __init__(self, endpoint: Endpoint, generation: int) -> None:
        self._endpoint = endpoint
        self.generation = generation
        self.waited_s = 0.0
        self._waiting_since: float | None = None
        self.links: dict[int, Link] = {}

    def swap(self, buffers: Mapping[int, tuple[memoryview, memoryview]]) -> None:
        """Send the first buffer, of bytes, to each peer while receiving the second from it.

        Raises:
            PeerLost: one of these ranks left, or the generation was superseded; what was received is worthless.
        """
        self.check()
        pending = []
        for peer, (outgoing, incoming) in buffers.items():
            link = self.links[peer]
            link.begin(outgoing, incoming)
            if not link.advance():
                pending.append(link)
        while pending:
            began = self._waiting_since = time.perf_counter()
            try:
                self._endpoint.wait(self.generation, [(link.socket, link.events) for link in pending], None)
            finally:
                self._waiting_since = None
                self.waited_s += time.perf_counter() - began
            pending = [link for link in pending if not link.advance()]

    def waiting_s(self) -> float:
        """How long `swap` has been waiting now; 0 when it does not. Callable from any thread."""
        since = self._waiting_since
        return 0.0 if since is None else time.perf_counter() - since

    def wait(self, sock: socket.socket, deadline: float) -> bool:
        """Wait until something else can be read; False when the deadline has passed.

        Raises:
            PeerLost: the generation was superseded.
        """
        while not select.select([sock], [], [], 0)[0]:
            if not self._endpoint.wait(self.generation, [(sock, select.POLLIN)], deadline):
                return False
        return True

    def check(self) -> None:
        """Raise PeerLost if the generation was superseded."""
        self._endpoint.check(self.generation)

    def break_off(self) -> None:
        """Break the waits of this generation; callable from any thread."""
        self._endpoint.supersede(self.generation + 1)

    def close(self) -> None:
        """Hang up on everyone."""
        while self.links:  # two threads may close it at once
            with contextlib.suppress(KeyError):
                self.links.popitem()[1].socket.close()


def _abstract(name: str) -> str:
    """Address of a Unix socket that is in no file system and ends with its process."""
    return f"\0lockstep-{name}"


def _tuned(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER_BYTES)
        return sock
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_LIMIT_MS)
    return sock


def _hello(sock: socket.socket, callers: dict[socket.socket, bytes]) -> bytes | None:
    """What a caller has said, once it is complete, and then no caller any more; a short one has hung up."""
    try:
        data = sock.recv(HELLO.size - len(callers[sock]))
    except BlockingIOError:
        return None
    except OSError:
        data = b""
    said = callers[sock] + data
    if data and len(said) < HELLO.size:
        callers[sock] = said
        return None
    del callers[sock]
    return said


def _welcome(sock: socket.socket) -> bool:
    """Answer a caller that is awaited; False when it has left meanwhile, to call again or in a later generation."""
    try:
        sock.send(WELCOME)
    except OSError:
        return False
    return True


def _rank_of(hello: bytes, digest: bytes) -> int | None:
    """The caller's rank; None if it does not know the key or the generation."""
    if len(hello) != HELLO.size:
        return None
    said, rank = HELLO.unpack(hello)
    return int(rank) if said == digest else None
