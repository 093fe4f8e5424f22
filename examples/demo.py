"""Show Lockstep at work: train on two workers, train the same on one, and compare the bits.

    make demo

Starts a server with a local Ray of its own, submits examples/digits-mlp.yaml twice, and stops all that it started.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lockstep.client import Client, Job, load_spec

SPEC = Path(__file__).with_name("digits-mlp.yaml")
START_TIMEOUT_S = 60


@contextmanager
def server(data_dir: Path) -> Iterator[str]:
    """Run `lockstep serve` on free ports; yields its address, and stops it whatever happens."""
    command = [Path(sys.executable).with_name("lockstep"), "serve", "--data-dir", data_dir, "--num-cpus", "2"]
    with (data_dir / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"],
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this program, which then stops the server
        )
    try:
        yield address_of(process, data_dir)
    finally:
        process.terminate()
        process.wait()


def address_of(process: subprocess.Popen[bytes], data_dir: Path) -> str:
    """Wait until the server has told where it listens."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (data_dir / "server.json").exists():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the server did not start:\n{(data_dir / 'server.log').read_text()}")
        time.sleep(0.05)
    address: str = json.loads((data_dir / "server.json").read_text())["grpc_address"]
    return address


def run(client: Client, workers: int) -> Job:
    """Submit the spec with a number of workers and show how it gets on."""
    spec = load_spec(SPEC)
    spec.resources.workers = workers
    print(f"\nTraining {spec.name} on {workers} worker{'s' if workers > 1 else ''} ...", flush=True)
    job = client.submit_job(spec).wait(progress=True)
    assert job.result is not None  # wait() has raised otherwise
    print(f"  validation accuracy  {job.result.final_metrics['val_accuracy']:.4f}")
    print(f"  weights digest       {job.result.weights_digest}", flush=True)
    return job


def compare(one: Job, other: Job) -> None:
    """Compare digests and every point of every result metric."""
    same_weights = one.result is not None and one.result == other.result
    points, other_points = one.metrics(kind="RESULT"), other.metrics(kind="RESULT")
    if not same_weights or points != other_points:
        sys.exit("\nThe two runs differ. That breaks Lockstep's promise: please report it.")
    print(f"\nOne curve: the digests are the same, and so are all {len(points)} metric points, bit for bit.")


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="lockstep-demo-") as folder:
        print("Starting a server with a local Ray ...", flush=True)
        with server(Path(folder)) as address, Client(address) as client:
            compare(run(client, workers=2), run(client, workers=1))
            print("Stopping the server ...", flush=True)


def stop(signum: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; everything that was started has been stopped.")
