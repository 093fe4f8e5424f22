"""Run a resolved spec without a server: alone, or on several processes under torchrun.

    python -m lockstep.workers.run resolved.yaml
    torchrun --nproc-per-node 2 -m lockstep.workers.run resolved.yaml

The file is a resolved spec as YAML or JSON: what `lockstep submit --dry-run` prints. Prints metric points as lines of
JSON, then the result.
"""

import argparse
import json
import sys
from pathlib import Path

import yaml
from google.protobuf import json_format

from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import Group, Listener, Point, Progress
from lockstep.workers.training import device_of, train


class Printer(Listener):
    """Prints points as lines of JSON."""

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Print the points."""
        for point in points:
            sys.stdout.write(json.dumps(point._asdict()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    spec = json_format.ParseDict(yaml.safe_load(parser.parse_args().spec.read_text()), JobSpec())
    group = Group.from_environment(device_of(spec))
    result = train(spec, group, Printer() if group.rank == 0 else None)
    group.leave()
    if group.rank == 0:
        sys.stdout.write(json.dumps(result._asdict()) + "\n")


if __name__ == "__main__":
    main()
