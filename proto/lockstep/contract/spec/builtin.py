"""What is known of data before it is read."""

from __future__ import annotations

from dataclasses import dataclass

from lockstep.contract.spec.fields import kinds_of
from lockstep.v1.job_spec_pb2 import JobSpec

CLASSIFICATION = "classification"
REGRESSION = "regression"


@dataclass(frozen=True)
class Builtin:
    """A bundled data set: number of examples, what it is for, what an example has, (height, width) of images."""

    size: int
    task: str
    inputs: int
    outputs: int
    image: tuple[int, int] | None = None


BUILTINS = {
    "digits": Builtin(1797, CLASSIFICATION, 64, 10, (8, 8)),
    "iris": Builtin(150, CLASSIFICATION, 4, 3),
    "wine": Builtin(178, CLASSIFICATION, 13, 3),
    "breast_cancer": Builtin(569, CLASSIFICATION, 30, 2),
    "diabetes": Builtin(442, REGRESSION, 10, 1),
}


def validation_size(total: int, fraction: float) -> int:
    """Count the examples that a built-in data set of `total` holds out for validation."""
    return min(max(round(total * fraction), 1), total - 1)


def train_size(spec: JobSpec) -> int | None:
    """Count the training examples of a resolved spec; None when only the workers can know."""
    match spec.data.WhichOneof("kind"):
        case "synthetic_regression":
            return spec.data.synthetic_regression.train_size
        case "builtin":
            total = BUILTINS[spec.data.builtin.name].size
            return total - validation_size(total, spec.data.builtin.validation_fraction)
        case _:
            return None


def task_of_data(spec: JobSpec) -> str | None:
    """What the data of a spec is for; None when none is chosen."""
    kind = spec.data.WhichOneof("kind")
    if kind == "builtin":
        return BUILTINS[spec.data.builtin.name].task
    return None if kind is None else str(kinds_of("data")[kind].tasks[0])


def name_of_data(spec: JobSpec) -> str:
    """Such as "idx" and "builtin digits"."""
    return f"builtin {spec.data.builtin.name}" if spec.data.HasField("builtin") else spec.data.WhichOneof("kind") or ""


def inputs_of(spec: JobSpec) -> int:
    """Count the inputs of a model as far as the spec tells; 1 where it does not."""
    match spec.data.WhichOneof("kind"):
        case "synthetic_regression":
            return len(spec.data.synthetic_regression.w)
        case "builtin":
            return BUILTINS[spec.data.builtin.name].inputs
        case _:
            return 1


def outputs_of(spec: JobSpec) -> int:
    """Count the outputs of a model as far as the spec tells; 1 where it does not."""
    return BUILTINS[spec.data.builtin.name].outputs if spec.data.HasField("builtin") else 1
