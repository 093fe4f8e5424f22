"""Run everything that one card can tell of Lockstep: `make gpu-check`, docs/gpu-check.md.

    python -m tests.machines.gpu_check [--only digests,healing] [--json gpu-check.json] [--device cpu]

Each section runs in a process of its own, so that one that crashes or hangs ends alone. Exits with 0 only when all
checks that could run have passed in time.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

from tests.machines.gpu_check.plan import Plan, on_a_gpu, on_cpus
from tests.machines.gpu_check.report import Row, Verdict, judge
from tests.machines.gpu_check.sections import SECTIONS

LEAVE_GRACE_S = 15.0
"""How long a section that is out of time may take to stop what it has started."""
SLOWER_ON_CPUS = 3.0
NO_GPU = "This machine shows no GPU to torch: the checks ran on its CPUs, which tells only that they themselves work."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where the figures go")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    if options.section:
        run_here(options.section, options.device)
        return 0
    names = options.only.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"--only: there is no section {unknown[0]}; allowed: {', '.join(SECTIONS)}")
    about = about_this_machine(options.device)
    print(about["device"] if options.device == "cuda" else NO_GPU)
    print(
        f"python {about['python']}, torch {about['torch']}, CUDA {about['cuda']}, driver {about['driver']}\n",
        flush=True,
    )
    print("\n".join([*Row("check", "seen", "wanted", Verdict.OK).lines()]).replace(" ok", " verdict"))
    began = time.monotonic()
    rows = {name: list(run_apart(name, options.device)) for name in names}
    took_s = time.monotonic() - began
    written = {section: [json.loads(row.to_json()) for row in found] for section, found in rows.items()}
    options.json.write_text(json.dumps({"about": about, "took_s": took_s, "sections": written}, indent=1))
    return sum_up(rows, took_s, options.json, options.device)


def about_this_machine(device: str) -> dict[str, str]:
    """What the figures are of."""
    name = driver = "none"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, sm_{properties.major}{properties.minor}"
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            driver = "unknown"
    return {
        "device": name,
        "driver": driver,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cudnn": str(torch.backends.cudnn.version()),
        "cpus": str(os.cpu_count()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def plan_for(device: str, folder: Path) -> Plan:
    return on_a_gpu(folder) if device == "cuda" else on_cpus(folder)


def run_here(section: str, device: str) -> None:
    """Run a section in this process; prints a row of JSON after another."""
    # Short: the names of Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="gpu-check-", dir="/tmp") as folder:
        try:
            for row in SECTIONS[section].check(plan_for(device, Path(folder))):
                print(row.to_json(), flush=True)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            details = traceback.format_exc().splitlines()
            row = judge(f"{section}: the rest of it", False, f"{type(error).__name__}: {error}"[:200], "", details)
            print(row.to_json(), flush=True)


def run_apart(section: str, device: str) -> Iterator[Row]:
    """Run a section in a process of its own; prints its rows, and yields them. Ends it when its time is over."""
    print(f"== {section}", flush=True)
    budget_s = SECTIONS[section].budget_s * (1 if device == "cuda" else SLOWER_ON_CPUS)
    began = time.monotonic()
    assert __spec__ is not None
    command = [sys.executable, "-m", __spec__.name, "--section", section, "--device", device]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
        is_out_of_time = threading.Event()
        watchdog = threading.Timer(budget_s, run_out, [process, is_out_of_time])
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    row = Row.from_json(line)
                    print("\n".join(row.lines()), flush=True)
                    yield row
            status = process.wait()
        finally:
            watchdog.cancel()
            end(process)
        errors.seek(0)
        last_words = errors.read()[-3000:].splitlines()
    if is_out_of_time.is_set():
        row = Row(f"{section}: the rest of it", f"out of its {budget_s:.0f} s", "", Verdict.LATE, last_words)
    elif status:
        row = judge(f"{section}: the rest of it", False, f"ended with status {status}", "0", last_words)
    else:
        print(f"   {time.monotonic() - began:.0f} s\n", flush=True)
        return
    print("\n".join(row.lines()), flush=True)
    yield row


def run_out(process: subprocess.Popen[str], is_out_of_time: threading.Event) -> None:
    is_out_of_time.set()
    end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Have a section stop what it has started, and end it with the ranks that it leaves: they are in its group."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def sum_up(rows: dict[str, list[Row]], took_s: float, written_to: Path, device: str) -> int:
    """Print the last lines; returns the exit status."""
    wrong = (Verdict.FAILED, Verdict.LATE)
    failed = [(section, row) for section, found in rows.items() for row in found if row.verdict in wrong]
    count = {verdict: sum(row.verdict is verdict for found in rows.values() for row in found) for verdict in Verdict}
    for section, row in failed:
        print(f"{row.verdict.value:6}  {section}: {row.check}: {row.seen}")
    told = ", ".join(f"{count[verdict]} {verdict.value}" for verdict in Verdict if count[verdict])
    print(f"{told}; {took_s:.0f} s; all of it is in {written_to}")
    if device == "cpu":
        print(NO_GPU)
    return 1 if failed or not count[Verdict.OK] else 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that everything that was started is stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
