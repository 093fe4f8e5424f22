"""Real processes that train together, kept for all tests of a session: importing torch takes longer than most tests."""

import gzip
import multiprocessing
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from lockstep.workers.engine import Group
from lockstep.workers.engine.exchange.group import Via
from lockstep.workers.engine.exchange.transport import Endpoint
from tests.support.processes import forking_context

MOST_RANKS = 4
TASK_TIMEOUT_S = 120


class RankFailed(AssertionError):
    """A rank raised; carries its traceback."""


class Ranks:
    """Processes that run a function as ranks of one group."""

    def __init__(self) -> None:
        self._context = forking_context()
        self._tasks = 0
        self._processes: list[tuple[multiprocessing.process.BaseProcess, Connection, str]] = []

    def run(self, world_size: int, function: Callable[..., Any], *args: Any, via: Via = "auto") -> list[Any]:
        """Call function(group, *args) on every rank; returns what they returned, by rank.

        Raises:
            RankFailed: some rank raised.
        """
        outcomes = self.outcomes(world_size, function, *args, via=via)
        for rank, (value, failure) in enumerate(outcomes):
            if failure:
                raise RankFailed(f"rank {rank} of {world_size}:\n{failure}")
            del value
        return [value for value, _ in outcomes]

    def outcomes(
        self, world_size: int, function: Callable[..., Any], *args: Any, via: Via = "auto"
    ) -> list[tuple[Any, str | None]]:
        """The same, as (value, traceback) by rank; a rank that died has (None, "died")."""
        while len(self._processes) < world_size:
            self._processes.append(self._start())
        self._tasks += 1
        addresses = [address for _, _, address in self._processes[:world_size]]
        for rank in range(world_size):
            self._processes[rank][1].send((function, args, rank, addresses, self._tasks, via))
        outcomes: list[tuple[Any, str | None]] = []
        dead = []
        for rank in range(world_size):
            connection = self._processes[rank][1]
            try:
                if not connection.poll(TASK_TIMEOUT_S):
                    self._kill()  # what they answer later is no answer to the next task
                    raise AssertionError(f"rank {rank} of {world_size} hangs in {function.__name__}")
                outcomes.append(connection.recv())
            except EOFError:
                outcomes.append((None, "died"))
                dead.append(rank)
        for rank in dead:
            self._processes[rank][0].join()
            self._processes[rank] = self._start()
        return outcomes

    def close(self) -> None:
        """End all processes."""
        for process, connection, _ in self._processes:
            connection.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()

    def _kill(self) -> None:
        for process, connection, _ in self._processes:
            connection.close()
            process.kill()
            process.join()
        self._processes.clear()

    def _start(self) -> tuple[multiprocessing.process.BaseProcess, Connection, str]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours, ours.recv()


def _serve(connection: Connection) -> None:
    endpoint = Endpoint("127.0.0.1")
    connection.send(endpoint.address)
    while True:
        try:
            function, args, rank, addresses, generation, via = connection.recv()
        except EOFError:
            return
        group = None
        outcome: tuple[Any, str | None]
        try:
            group = Group.join(endpoint, rank, addresses, b"secret", "cpu", generation, 60, via)
            outcome = function(group, *args), None
        except BaseException:
            outcome = None, traceback.format_exc()
        finally:
            if group is not None:
                group.leave()
        connection.send(outcome)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Run a function on 1 to 4 ranks."""
    pool = Ranks()
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def first_of_mnist(mnist_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 12,000 and 1,000 images of MNIST: of the rest every rank reads and validates no more."""
    folder = tmp_path_factory.mktemp("mnist")
    for part, count in (("train", 12_000), ("t10k", 1_000)):
        for kind, header_bytes, bytes_each in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            name = f"{part}-{kind}-ubyte"
            with gzip.open(mnist_root / f"{name}.gz") as file:
                header, content = file.read(header_bytes), file.read(count * bytes_each)
            (folder / name).write_bytes(header[:4] + count.to_bytes(4, "big") + header[8:] + content)
    return folder
