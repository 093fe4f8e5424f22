"""Which head of Ray is adopted, replaced or left alone, decided on real processes that stand in for one."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from lockstep.server.cluster.ray_environment import environment_of_embedded, of_children
from lockstep.server.cluster.ray_head import HeadRecord, RayHead
from lockstep.server.process import children

# A head that answers at its port and starts one more process of its cluster, which holds a file of it open.
HEAD = """
import socket, subprocess, sys, time
listener = socket.create_server(("127.0.0.1", 0))
log = open(sys.argv[1] + "/log", "w")
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)"], stdout=log)
print(listener.getsockname()[1], flush=True)
while True: time.sleep(60)
"""


class ReplacedHead(RuntimeError):
    """A new one would be started now."""


@contextmanager
def played_head(data_dir: Path, root: Path, **noted: object) -> Iterator[HeadRecord]:
    """Run what stands in for the head of a data folder, and note it there as a server does."""
    head = RayHead(data_dir, num_cpus=2, num_gpus=0)
    temp_dir = root / f"lockstep-{data_dir.name}" / "ray"
    temp_dir.mkdir(parents=True)
    with children.ending_signals_blocked():
        process = subprocess.Popen(
            [sys.executable, "-c", HEAD, str(temp_dir)],
            env=head.environment(),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        record = HeadRecord(process.pid, f"127.0.0.1:{port}", str(temp_dir), 2, 0, head._made_of())
        record = replace(record, **noted)  # type: ignore[arg-type]
        (data_dir / "ray.json").write_text(json.dumps(asdict(record)))
        yield record
    finally:
        for pid in record.pids():
            children.send(pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()


def start(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Start a head for a folder: its address and what was logged; the address is empty when it would be a new one."""

    async def refuse(self: RayHead) -> HeadRecord:
        raise ReplacedHead

    monkeypatch.setattr(RayHead, "_start_new", refuse)
    with capture_logs() as logs:
        try:
            address = asyncio.run(RayHead(data_dir, num_cpus=2, num_gpus=0).start())
        except ReplacedHead:
            address = ""
    return address, [f"{line['event']} {line.get('why', '')}".strip() for line in logs]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_the_head_of_the_server_before_is_adopted(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with played_head(data_dir, data_dir.parent) as record:
        assert start(data_dir, monkeypatch) == (
            record.address,
            ["adopting the embedded Ray of the server before"],
        )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("python", "/old/bin/python 3.10", "it was started with another python"),
        ("ray", "1.0", "it was started with another ray"),
        ("lockstep", "0.1 /old/lockstep/workers/__init__.py", "it was started with another lockstep"),
        ("PYTHONPATH", "/old/workers", "it was started with another PYTHONPATH"),
        ("token", "0123456789abcdef", "it was started with another token"),
    ],
)
def test_a_head_whose_workers_would_run_other_code_is_replaced_and_the_log_says_why(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    made_of = RayHead(data_dir, num_cpus=2, num_gpus=0)._made_of() | {name: value}
    with played_head(data_dir, data_dir.parent, made_of=made_of) as record:
        assert start(data_dir, monkeypatch) == ("", [f"replacing the embedded Ray of the server before {words}"])
        assert not record.pids()
        assert not Path(record.temp_dir).parent.exists()


def test_a_head_that_an_older_version_has_noted_is_replaced(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with played_head(data_dir, data_dir.parent) as record:
        noted = asdict(record) | {"client_port": 1}
        del noted["made_of"]
        (data_dir / "ray.json").write_text(json.dumps(noted))
        assert start(data_dir, monkeypatch)[0] == ""
        assert not record.pids()


def test_a_copy_of_the_folder_leaves_the_head_of_the_first_alone(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with played_head(data_dir, data_dir.parent) as record:
        copy = data_dir.with_name("copy")
        shutil.copytree(data_dir, copy)
        assert start(copy, monkeypatch) == (
            "",
            ["the Ray of ray.json belongs to another data folder and is left alone"],
        )
        assert len(record.pids()) == 2
        assert start(data_dir, monkeypatch)[0] == record.address


def test_a_folder_that_was_moved_ends_the_head_that_knows_it_by_its_old_place(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with played_head(data_dir, data_dir.parent) as record:
        moved = data_dir.rename(data_dir.with_name("moved"))
        assert start(moved, monkeypatch) == (
            "",
            [f"replacing the embedded Ray of the server before the data folder was at {data_dir}"],
        )
        assert not record.pids()


def test_what_a_dead_head_has_left_is_ended_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with played_head(data_dir, data_dir.parent) as record:
        os.kill(record.pid, signal.SIGKILL)
        os.waitpid(record.pid, 0)
        (left,) = record.pids()
        assert psutil.pid_exists(left)
        assert start(data_dir, monkeypatch)[0] == ""
        assert not record.pids()


@pytest.mark.parametrize("damaged", ["", "0123", "nonsense" * 8, "ü" * 64])
def test_a_damaged_token_is_replaced_and_told(data_dir: Path, damaged: str) -> None:
    head = RayHead(data_dir, num_cpus=2, num_gpus=0)
    first = head._made_of()["token"]
    path = data_dir / "ray.token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert head._made_of()["token"] == first
    path.write_text(damaged)
    with capture_logs() as logs:
        assert head._made_of()["token"] != first
    assert [line["event"] for line in logs] == ["the token of the embedded Ray was damaged and is replaced"]
    assert len(path.read_text()) == 64
    assert [entry.name for entry in data_dir.iterdir()] == ["ray.token"], "no draft is left"


def test_an_embedded_ray_has_nothing_of_another_cluster_that_is_set_around_the_server(tmp_path: Path) -> None:
    around = {
        "RAY_ADDRESS": "10.0.0.1:6379",
        "RAY_AUTH_TOKEN": "theirs",
        "RAY_RUNTIME_ENV_HOOK": "theirs.hook",
        "RAY_NAMESPACE": "theirs",
        "RAY_memory_usage_threshold": "0.9",
        "PATH": "/bin",
    }
    environment = environment_of_embedded(tmp_path / "ray.token", around)
    assert around.keys() & environment.keys() == {"RAY_memory_usage_threshold", "PATH"}
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray.token")


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        ({}, {"no_proxy": "127.0.0.1,localhost,::1,10.1.2.3", "NO_PROXY": "127.0.0.1,localhost,::1,10.1.2.3"}),
        (
            {"no_proxy": "a, localhost", "no_grpc_proxy": "b"},
            {
                "no_proxy": "a,localhost,127.0.0.1,::1,10.1.2.3",
                "NO_PROXY": "127.0.0.1,localhost,::1,10.1.2.3",
                "no_grpc_proxy": "b,127.0.0.1,localhost,::1,10.1.2.3",
            },
        ),
    ],
)
def test_proxies_stay_for_all_hosts_but_our_own(around: dict[str, str], expected: dict[str, str]) -> None:
    proxies = {"https_proxy": "http://proxy:3128"}
    assert of_children(around | proxies, "10.1.2.3:7000") == expected | proxies


def test_modules_named_from_the_folder_of_the_start_are_found_from_any_other() -> None:
    given = {"PYTHONPATH": f"a/b:{os.pathsep}/c{os.pathsep}."}
    assert of_children(given)["PYTHONPATH"] == f"{Path.cwd()}/a/b:/c:{Path.cwd()}"


def test_the_folder_that_is_removed_is_never_one_that_was_not_made_for_a_head() -> None:
    assert HeadRecord(1, "", "/tmp/lockstep-a/ray", 1, 0).folder == Path("/tmp/lockstep-a")
    assert HeadRecord(1, "", "/tmp/lockstep-a", 1, 0).folder == Path("/tmp/lockstep-a"), "of an older version"
    assert HeadRecord(1, "", "/home/somebody", 1, 0).folder is None


def test_a_port_that_does_not_answer_is_no_reason_to_keep_a_head(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with played_head(data_dir, data_dir.parent, address=f"127.0.0.1:{port}"):
        assert start(data_dir, monkeypatch) == (
            "",
            ["replacing the embedded Ray of the server before it does not answer"],
        )


def test_a_head_that_cannot_be_noted_is_ended_as_nobody_would_find_it_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[subprocess.Popen[bytes]] = []

    def spawn(self: RayHead, command: list[str]) -> subprocess.Popen[bytes]:
        (temp_dir,) = (part.removeprefix("--temp-dir=") for part in command if part.startswith("--temp-dir="))
        Path(temp_dir).mkdir()
        heads.append(subprocess.Popen([sys.executable, "-c", HEAD, temp_dir], stdout=subprocess.DEVNULL))
        return heads[-1]

    monkeypatch.setattr(RayHead, "_spawn", spawn)
    (data_dir / "ray.json").mkdir()  # so that no file can take its place
    head = RayHead(data_dir, num_cpus=1, num_gpus=0)
    try:
        for _ in range(2):
            with pytest.raises(OSError, match=r"ray\.json"):
                asyncio.run(head.start())
        assert [process.poll() for process in heads] == [-signal.SIGKILL] * 2
    finally:
        for process in heads:
            process.kill()
            process.wait()
