"""Run every benchmark, one after the other: `make bench`."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = (
    "exchange.py",
    "throughput.py",
    "large_model.py",
    "masks.py",
    "submit.py",
    "followers.py",
    "accuracy.py",
    "start.py",
    "heal.py",
    "ledger.py",
    "scrape.py",
    "loop_turns.py",
)


def main() -> int:
    statuses = []
    for name in BENCHMARKS:
        print(f"\n== benchmarks/{name}", flush=True)
        statuses.append(subprocess.run([sys.executable, Path(__file__).with_name(name)]).returncode)
    return max(statuses)


if __name__ == "__main__":
    sys.exit(main())
