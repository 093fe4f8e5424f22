"""A real Prometheus for tests: where its programs come from, and one that scrapes what a test gives it."""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "deploy" / "prometheus"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lockstep-tests" / "prometheus"
TIMEOUT_S = 60
Sample = dict[str, Any]


def program(name: str) -> Path:
    """Where `prometheus` or `promtool` is: on the PATH, else unpacked from Debian's package into the cache.

    Raises:
        AssertionError: there is none, and the package cannot be fetched.
    """
    if found := shutil.which(name):
        return Path(found)
    unpacked = CACHE / "usr" / "bin" / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with _only_one(CACHE.with_suffix(".lock")):
        if not unpacked.exists():
            _unpack()
    return unpacked


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Keep other test runs away from the cache."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack() -> None:
    steps = [["apt-get", "download", "prometheus"], ["sh", "-c", "dpkg -x prometheus_*.deb ."]]
    for step in steps:
        try:
            done = subprocess.run(step, cwd=CACHE, capture_output=True, text=True)
            trouble = done.stderr if done.returncode else ""
        except FileNotFoundError as error:
            trouble = str(error)
        if trouble:
            raise AssertionError(
                "these tests need the programs prometheus and promtool: install the package `prometheus`, or put both "
                f"on the PATH. Fetching the package by `{' '.join(step)}` failed: {trouble}"
            )
    for package in CACHE.glob("*.deb"):
        package.unlink()


def promtool(*args: object, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; what it has to say is in its `stdout` and `stderr`."""
    command = [str(program("promtool")), *map(str, args)]
    return subprocess.run(command, input=text, capture_output=True, text=True)


class Prometheus:
    """A Prometheus with our configuration that scrapes its targets, and applies the rules, each second."""

    def __init__(self, folder: Path, *targets: str) -> None:
        """Start it; it answers when this returns.

        Args:
            folder: an empty folder for its configuration, its data and its log.
            targets: addresses of pages such as "127.0.0.1:50052".
        """
        config = yaml.safe_load((CONFIG / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(CONFIG / name) for name in config["rule_files"]]
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": list(targets)}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program("prometheus"),
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address={address}",
                ],
                stderr=log,
                start_new_session=True,
            )
        try:
            self.wait_until(self._is_ready)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Prometheus":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def query(self, expr: str) -> list[Sample]:
        """What PromQL gives now: samples with `metric` and `value`.

        Raises:
            AssertionError: Prometheus refuses the query; its words are the message.
        """
        return list(self._get("query", query=expr)["result"])

    def wait_for(self, expr: str) -> list[Sample]:
        """Wait until a query returns something."""
        found: list[Sample] = []

        def returns_something() -> bool:
            found[:] = self.query(expr)
            return bool(found)

        self.wait_until(returns_something, expr)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule with its `health` and `lastError`."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, with `health` and `lastError`."""
        return list(self._get("targets")["activeTargets"])

    def wait_until(self, is_so: Callable[[], bool], what: str = "") -> None:
        """Wait for something that Prometheus gives no event for, while it lives."""
        pause = threading.Event()
        for _ in range(TIMEOUT_S * 10):
            assert self._process.poll() is None, f"Prometheus has ended:\n{self._log.read_text()}"
            if is_so():
                return
            pause.wait(0.1)
        raise AssertionError(f"waited in vain for {what or is_so}")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def _get(self, name: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{name}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters or name}: {error.read().decode()}") from error
