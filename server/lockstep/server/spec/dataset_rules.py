"""What models and data sets ask of each other, and what is known of data before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockstep.contract import idx
from lockstep.contract.bounds import LENET_LEAST_PIXELS
from lockstep.server.spec.rules import CrossRule, Shown, Site, is_file
from lockstep.v1.job_spec_pb2 import JobSpec

CLASSIFICATION = "classification"
REGRESSION = "regression"

MODEL_TASKS: dict[str, tuple[str, ...]] = {
    "linear_regression": (REGRESSION,),
    "softmax_regression": (CLASSIFICATION,),
    "mlp": (CLASSIFICATION, REGRESSION),
    "lenet": (CLASSIFICATION,),
}

DATASET_TASKS: dict[str, tuple[str, ...]] = {
    "synthetic_regression": (REGRESSION,),
    "builtin": (CLASSIFICATION, REGRESSION),
    "idx": (CLASSIFICATION,),
}


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

MOST_SYNTHETIC_NUMBERS = 1_000_000_000

_IDX_LIMITS = f"a folder with {', '.join(idx.FILES)}, each plain or gzipped"


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


def _task_of_data(spec: JobSpec) -> str | None:
    kind = spec.data.WhichOneof("kind")
    if kind == "builtin":
        return BUILTINS[spec.data.builtin.name].task
    return None if kind is None else DATASET_TASKS[kind][0]


def _name_of_data(spec: JobSpec) -> str:
    return f"builtin {spec.data.builtin.name}" if spec.data.HasField("builtin") else spec.data.WhichOneof("kind") or ""


def _task_mismatch(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    model, task = spec.model.WhichOneof("kind"), _task_of_data(spec)
    if model is None or task is None or task in MODEL_TASKS[model]:
        return None
    offered = "numbers to predict (regression)" if task == REGRESSION else "classes (classification)"
    return (
        f"model is {model} and data is {_name_of_data(spec)}, which offers {offered}; "
        f"allowed with {model}: data for {' or '.join(MODEL_TASKS[model])}"
    )


def _lenet_images(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    builtin = BUILTINS[spec.data.builtin.name]
    if not spec.model.HasField("lenet") or builtin.task != CLASSIFICATION or builtin.image is not None:
        return None
    return f"model is lenet and data is {_name_of_data(spec)}, which holds no images; allowed with lenet: images"


def _lenet_image_size(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    image = BUILTINS[spec.data.builtin.name].image
    if not spec.model.HasField("lenet") or image is None or min(image) >= LENET_LEAST_PIXELS:
        return None
    return (
        f"model is lenet and data is {_name_of_data(spec)}, with images of {image[0]} by {image[1]} pixels; "
        f"allowed with lenet: at least {LENET_LEAST_PIXELS} by {LENET_LEAST_PIXELS}"
    )


def _batch_above_data(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    size = train_size(spec)
    if size is None or spec.training.batch_size <= size:
        return None
    return f"{shown('training.batch_size')}; allowed: at most {size:,}, the number of training examples"


def _shown_path(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-150:]}"


def _idx_folder(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    if len(_missing(spec, site)) < len(idx.FILES):
        return None
    # Why, is not told: a spec shall not be a way to learn which paths there are.
    folder = _shown_path(Path(spec.data.idx.root))
    return f"data.idx.root: {folder} is no folder with the four IDX files that can be read; allowed: {_IDX_LIMITS}"


def _idx_files(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    missing = _missing(spec, site)
    if len(missing) in (0, len(idx.FILES)):
        return None
    what = ", ".join(f"{name}[.gz]" for name in missing)
    return f"data.idx.root: {_shown_path(Path(spec.data.idx.root))} has no {what}; allowed: {_IDX_LIMITS}"


def _missing(spec: JobSpec, site: Site) -> list[str]:
    folder = Path(spec.data.idx.root)
    if not site.shares_files_with_workers:
        return []
    return [name for name in idx.FILES if not any(is_file(folder / (name + end)) for end in ("", ".gz"))]


def _too_many_numbers(spec: JobSpec, site: Site, shown: Shown) -> str | None:
    synthetic = spec.data.synthetic_regression
    numbers = len(synthetic.w) * (synthetic.train_size + synthetic.validation_size)
    if numbers <= MOST_SYNTHETIC_NUMBERS:
        return None
    return (
        f"data.synthetic_regression.train_size makes {numbers:,} numbers, with the validation examples and the "
        f"{len(synthetic.w):,} features; allowed: at most {MOST_SYNTHETIC_NUMBERS:,}, since they lie in memory"
    )


DATASET_CROSS_RULES: tuple[CrossRule, ...] = (
    CrossRule(
        "model",
        ("data.synthetic_regression.*",),
        "a model for the task of the data",
        "choose linear_regression or mlp for it, or data with classes",
        _task_mismatch,
    ),
    CrossRule(
        "model",
        ("data.builtin.name",),
        "a model for the task of the data",
        "choose another model or other data; mlp fits both tasks",
        _task_mismatch,
    ),
    CrossRule(
        "model",
        ("data.idx.*",),
        "a model for the task of the data",
        "choose softmax_regression, mlp or lenet for it",
        _task_mismatch,
    ),
    CrossRule(
        "model",
        ("data.builtin.name",),
        "lenet only with images",
        "choose softmax_regression or mlp for tables, or image data such as idx",
        _lenet_images,
    ),
    CrossRule(
        "model",
        ("data.builtin.name",),
        f"lenet only with images of at least {LENET_LEAST_PIXELS} by {LENET_LEAST_PIXELS} pixels",
        "choose softmax_regression or mlp, or larger images such as MNIST by idx",
        _lenet_image_size,
    ),
    CrossRule(
        "training.batch_size",
        ("training.batch_size", "data.synthetic_regression.train_size"),
        "at most the number of training examples",
        "take a smaller batch, or raise data.synthetic_regression.train_size",
        _batch_above_data,
    ),
    CrossRule(
        "training.batch_size",
        ("training.batch_size", "data.builtin.name", "data.builtin.validation_fraction"),
        "at most the number of training examples",
        "take a smaller batch, or a smaller data.builtin.validation_fraction",
        _batch_above_data,
    ),
    CrossRule(
        "data.idx.root",
        ("data.idx.root",),
        "a folder with the four IDX files",
        "give the folder as the workers see it; a relative path starts at the server's working directory",
        _idx_folder,
    ),
    CrossRule(
        "data.idx.root",
        ("data.idx.root",),
        "a folder with the four IDX files, each plain or gzipped",
        "put the files there under these names, or name another folder",
        _idx_files,
    ),
    CrossRule(
        "data.synthetic_regression.train_size",
        (
            "data.synthetic_regression.w",
            "data.synthetic_regression.train_size",
            "data.synthetic_regression.validation_size",
        ),
        "at most 1,000,000,000 numbers in all",
        "draw fewer examples, or fewer features",
        _too_many_numbers,
    ),
)
