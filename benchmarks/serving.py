"""A server for benchmarks: `lockstep serve` on free ports and a folder of its own, stopped at the end."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 60


@contextmanager
def server(num_cpus: int) -> Iterator[tuple[str, Path]]:
    """Run a server with an embedded Ray; yields its gRPC address and its data folder."""
    with tempfile.TemporaryDirectory(prefix="lockstep-bench-") as folder:
        data_dir = Path(folder)
        command = [Path(sys.executable).with_name("lockstep"), "serve", "--data-dir", data_dir]
        with (data_dir / "server.log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--num-cpus", str(num_cpus)],
                stderr=log,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while b"cluster ready" not in (data_dir / "server.log").read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((data_dir / "server.log").read_text())
                time.sleep(0.1)
            yield json.loads((data_dir / "server.json").read_text())["grpc_address"], data_dir
        finally:
            process.terminate()
            process.wait()
