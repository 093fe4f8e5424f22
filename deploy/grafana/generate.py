"""Write the boards that Grafana draws.

python deploy/grafana/generate.py            # write
python deploy/grafana/generate.py --check    # exit 1 when what is committed differs from what would be written
"""

import argparse
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from boards.fleet import fleet
from boards.gpu import gpu
from boards.job import job
from boards.service import service

FOLDER = Path(__file__).resolve().parent / "dashboards"
BOARDS = {"fleet.json": fleet, "job.json": job, "gpu.json": gpu, "service.json": service}


def contents() -> dict[str, str]:
    """Map the name of every file to its text."""
    encoder = JSONEncoder(sort_keys=True, indent=1, ensure_ascii=False)
    return {name: encoder.encode(make().build()) + "\n" for name, make in BOARDS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    fresh = contents()
    if not parser.parse_args().check:
        for name, text in fresh.items():
            (FOLDER / name).write_text(text)
        return 0
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
    for name in stale:
        print(f"deploy/grafana/dashboards/{name} is stale; run `make dashboards`", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
