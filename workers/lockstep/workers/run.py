"""Run a resolved spec without a server: alone, or on several processes under torchrun.

    lockstep resolve -f spec.yaml > resolved.yaml
    python -m lockstep.workers.run resolved.yaml -o weights
    torchrun --nproc-per-node 2 -m lockstep.workers.run resolved.yaml -o weights

The file is a resolved spec as YAML or JSON: what `lockstep resolve` and `lockstep submit --dry-run` print. It is read
and checked by the rules of `lockstep submit`. Prints metric points as lines of JSON, then the result; with --quiet
the result alone.
"""

import argparse
import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from lockstep.contract.facts import ENGINE_VERSION
from lockstep.v1.job_spec_pb2 import JobSpec
from lockstep.workers.engine import EngineError, Group, Listener, Origin, Point, Progress
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.state.checkpoint import Checkpoints, NotOurs
from lockstep.workers.engine.state.manifest import json_number
from lockstep.workers.engine.state.storage import followed
from lockstep.workers.training import check_device, device_of, train

FAILED, REFUSED, UNREAD = 1, 2, 141
"""Exit codes: training could not go on; the command line or the spec is wrong; nobody reads what is printed any more,
as a shell says it of a program that SIGPIPE has ended."""
HINT = "make one: lockstep resolve -f SPEC > resolved.yaml, or lockstep submit -f SPEC --dry-run > resolved.yaml"
ALWAYS_RESOLVED = {
    "training": ("batch_size", "log_every_steps"),
    "resources": ("shards", "cpus_per_worker"),
    "recovery": ("checkpoint_every_steps",),
}
"""Fields that each resolved spec has, whatever was left out of what its user wrote."""


class Printer(Listener):
    """Prints points as lines of JSON, unless it is quiet, and on stderr what people should know."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self._is_quiet = is_quiet

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """Print the points."""
        for point in () if self._is_quiet else points:
            content = point._asdict() | {name: json_number(getattr(point, name)) for name in ("epoch", "value")}
            is_timing = content.pop("is_timing")
            _print(content | {"kind": "TIMING" if is_timing else "RESULT"})  # as `lockstep metrics -o json` has it

    def noted(self, words: str) -> None:
        """Print the words."""
        sys.stderr.write(f"{words}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", help="a resolved spec, YAML or JSON")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, help="keep the trained weights in a folder in DIR")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the result alone, not the metric points")
    options = parser.parse_args()
    spec = _read(options.spec)
    try:
        check_device(spec)
        origin = _origin(spec, options.output)
        group = Group.from_environment(device_of(spec))
        result = train(spec, group, Printer(is_quiet=options.quiet) if group.rank == 0 else None, origin=origin)
    except EngineError as error:
        _end(str(error), FAILED)
    group.leave()
    if group.rank == 0:
        metrics = {name: json_number(value) for name, value in result.final_metrics.items()}
        _print(result._asdict() | {"final_metrics": metrics})
        if origin.checkpoints is not None and not origin.checkpoints.steps():
            _end(f"the weights are not kept in {options.output}, as said above", FAILED)


def _read(path: str) -> JobSpec:
    """Read a resolved spec by the rules of the client, which offers them by an entry point."""
    (load,) = entry_points(group="lockstep.specs", name="load")
    try:
        spec: JobSpec = load.load()(path)
    except Exception as error:  # the client's, whose classes are not known here
        _end(str(error), REFUSED)
    wrong = _violations(spec)
    if wrong:
        lines = "".join(f"\n  {field}: {message}" for field, message in wrong)
        _end(f"{path} has {len(wrong)} error{'s' if len(wrong) > 1 else ''}:{lines}", REFUSED)
    values = {
        f"{part}.{name}": getattr(getattr(spec, part), name) if getattr(spec, part).HasField(name) else None
        for part, names in ALWAYS_RESOLVED.items()
        for name in names
    }
    absent = [field for field, value in values.items() if value is None]
    if absent:
        _end(f"{path} is no resolved spec, since it has no {', '.join(absent)}; {HINT}", REFUSED)
    invalid = [f"{field} is {value:g}" for field, value in values.items() if value is not None and value <= 0]
    if invalid:  # what is left to see where the rules are not installed
        _end(f"{path} is no resolved spec: {', '.join(invalid)}, and must be more than 0; {HINT}", REFUSED)
    return spec


def _violations(spec: JobSpec) -> list[tuple[str, str]]:
    """What is wrong with a spec, as pairs of field and message; nothing where the server's part is not installed."""
    for rules in entry_points(group="lockstep.rules", name="resolve"):
        try:
            resolve = rules.load()
        except ImportError:
            continue
        violations: list[tuple[str, str]] = resolve(spec)[1]
        return violations
    return []


def _origin(spec: JobSpec, output: Path | None) -> Origin:
    if spec.init_from.job_id:
        _end("init_from.job_id names a job of a server; set init_from.uri to the folder of its checkpoint", REFUSED)
    if output is None:
        return Origin(None, 1, followed(spec.init_from.uri))
    checkpoints = Checkpoints(
        str(output.resolve()),
        facts={"engine_version": ENGINE_VERSION, "hardware_class": hardware_class(device_of(spec))},
        spec=json_format.MessageToDict(spec, preserving_proto_field_name=True),
    )
    try:
        if checkpoints.steps():
            _end(f"{output} holds a checkpoint already; remove it, or name another folder", REFUSED)
    except (NotOurs, OSError) as error:
        _end(f"{output} cannot be used: {error}", REFUSED)
    return Origin(checkpoints, sys.maxsize, followed(spec.init_from.uri))


def _print(content: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(content, allow_nan=False) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as behind `| head`; what is buffered still must go nowhere when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(UNREAD) from None


def _end(words: str, code: int) -> Any:
    sys.stderr.write(f"lockstep.workers.run: {words}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
