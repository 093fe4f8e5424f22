from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from lockstep.client import Client, _connection
from lockstep.client.cli import main
from tests.support.scripted_server import ScriptedServer


@pytest.fixture(autouse=True)
def _a_quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCKSTEP_TARGET", "LOCKSTEP_TOKEN", "LOCKSTEP_DEBUG", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(_connection, "FIRST_CONTACT_S", 0.2)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer()
    yield server
    server.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


@pytest.fixture
def unreachable() -> str:
    """An address at which nothing listens."""
    server = ScriptedServer()
    server.stop()
    return server.target


Lockstep = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lockstep(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> Lockstep:
    """The command line, against the scripted server: gives the exit code, standard output and standard error."""

    def run(*arguments: str, target: str | None = None) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["--target", target or server.target, *arguments])
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """An event for a scripted reply to wait for; set at the latest when the test is over."""
    event = threading.Event()
    yield event
    event.set()
