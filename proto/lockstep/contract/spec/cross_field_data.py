"""Rules that models, data and minibatches ask of each other, as far as the spec alone tells."""

from __future__ import annotations

from itertools import pairwise

from lockstep.contract.spec.builtin import (
    BUILTINS,
    CLASSIFICATION,
    REGRESSION,
    inputs_of,
    name_of_data,
    outputs_of,
    task_of_data,
    train_size,
)
from lockstep.contract.spec.fields import kinds_of
from lockstep.contract.spec.traversal import CrossRule, Shown
from lockstep.v1.job_spec_pb2 import JobSpec

MOST_SYNTHETIC_NUMBERS = 1_000_000_000
MOST_WEIGHTS = 1_000_000_000


def _task_mismatch(spec: JobSpec, shown: Shown) -> str | None:
    model, task = spec.model.WhichOneof("kind"), task_of_data(spec)
    if model is None or task is None or task in kinds_of("model")[model].tasks:
        return None
    offered = "numbers to predict (regression)" if task == REGRESSION else "classes (classification)"
    return (
        f"model is {model} and data is {name_of_data(spec)}, which offers {offered}; "
        f"allowed with {model}: data for {' or '.join(kinds_of('model')[model].tasks)}"
    )


def _least_image_side(spec: JobSpec) -> int:
    """How many pixels each way the model asks of images; 0 when it takes tables too."""
    model = spec.model.WhichOneof("kind")
    return 0 if model is None else kinds_of("model")[model].least_image_side


def _no_images(spec: JobSpec, shown: Shown) -> str | None:
    builtin, model = BUILTINS[spec.data.builtin.name], spec.model.WhichOneof("kind")
    if not _least_image_side(spec) or builtin.task != CLASSIFICATION or builtin.image is not None:
        return None
    return f"model is {model} and data is {name_of_data(spec)}, which holds no images; allowed with {model}: images"


def _small_images(spec: JobSpec, shown: Shown) -> str | None:
    image, model, least = BUILTINS[spec.data.builtin.name].image, spec.model.WhichOneof("kind"), _least_image_side(spec)
    if image is None or min(image) >= least:
        return None
    return (
        f"model is {model} and data is {name_of_data(spec)}, with images of {image[0]} by {image[1]} pixels; "
        f"allowed with {model}: at least {least} by {least}"
    )


def _batch_above_data(spec: JobSpec, shown: Shown) -> str | None:
    size = train_size(spec)
    if size is None or spec.training.batch_size <= size:
        return None
    return f"{shown('training.batch_size')}; allowed: at most {size:,}, the number of training examples"


def _too_many_numbers(spec: JobSpec, shown: Shown) -> str | None:
    synthetic = spec.data.synthetic_regression
    numbers = len(synthetic.w) * (synthetic.train_size + synthetic.validation_size)
    if numbers <= MOST_SYNTHETIC_NUMBERS:
        return None
    return (
        f"data.synthetic_regression.train_size makes {numbers:,} numbers, with the validation examples and the "
        f"{len(synthetic.w):,} features; allowed: at most {MOST_SYNTHETIC_NUMBERS:,}, since they lie in memory"
    )


def too_many_weights(spec: JobSpec, inputs: int) -> str | None:
    """Say what is wrong with the number of weights of a model with so many inputs."""
    if not spec.model.HasField("mlp"):
        return None
    widths = [inputs, *spec.model.mlp.hidden_units, outputs_of(spec)]
    weights = sum(before * after for before, after in pairwise(widths))
    if weights <= MOST_WEIGHTS:
        return None
    return (
        f"model.mlp.hidden_units makes {weights:,} weights, with {inputs:,} inputs; allowed: at most {MOST_WEIGHTS:,}"
    )


WEIGHTS_LIMITS = "at most 1,000,000,000 weights, those of the inputs among them"
WEIGHTS_HINT = "make the layers narrower or fewer"


def _weights(*data: str) -> CrossRule:
    return CrossRule(
        "model.mlp.hidden_units",
        ("model.mlp.hidden_units", *data),
        WEIGHTS_LIMITS,
        WEIGHTS_HINT,
        lambda spec, shown: too_many_weights(spec, inputs_of(spec)),
    )


def _task(reads: str, hint: str) -> CrossRule:
    return CrossRule("model", (reads,), "a model for the task of the data", hint, _task_mismatch)


_LEAST_SIDES = [(kind, facts.least_image_side) for kind, facts in kinds_of("model").items() if facts.least_image_side]

DATA_CROSS_RULES: tuple[CrossRule, ...] = (
    _task("data.synthetic_regression.*", "choose linear_regression or mlp for it, or data with classes"),
    _task("data.builtin.name", "choose another model or other data; mlp fits both tasks"),
    _task("data.idx.*", "choose softmax_regression, mlp or lenet for it"),
    CrossRule(
        "model",
        ("data.builtin.name",),
        "; ".join(f"{model} only with images" for model, _ in _LEAST_SIDES),
        "choose softmax_regression or mlp for tables, or image data such as idx",
        _no_images,
    ),
    CrossRule(
        "model",
        ("data.builtin.name",),
        "; ".join(f"{model} only with images of at least {least} by {least} pixels" for model, least in _LEAST_SIDES),
        "choose softmax_regression or mlp, or larger images such as MNIST by idx",
        _small_images,
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
    _weights("data.builtin.name"),
    _weights("data.synthetic_regression.w"),
)
