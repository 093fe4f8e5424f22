"""What a spec may say of models and data: the rules of the table, told to people."""

from __future__ import annotations

import json

from lockstep.server.spec.dataset_rules import DATASET_TASKS, MODEL_TASKS
from lockstep.server.spec.rules import Default, FieldRule, kinds_of
from lockstep.server.spec.validation import FIELD_RULES
from lockstep.v1.catalog_service_pb2 import CatalogEntry, CatalogParameter

_MODELS = {
    "linear_regression": "y = Xw + b with squared loss.",
    "softmax_regression": "Class scores XW + b with cross-entropy loss.",
    "mlp": "Multilayer perceptron; cross-entropy loss on classes, squared loss on numbers.",
    "lenet": "LeNet-5, a small convolutional network for images of at least 12 by 12 pixels.",
}

_DATASETS = {
    "synthetic_regression": "Numbers drawn from a linear model: y = Xw + b + noise.",
    "builtin": (
        "A small real data set that comes with the workers: digits (images), iris, wine and breast_cancer (tables with "
        "classes), diabetes (a table with numbers to predict)."
    ),
    "idx": "Images and labels in IDX files, the format of MNIST and FashionMNIST.",
}


def _parameter(rule: FieldRule) -> CatalogParameter:
    is_required = rule.default is Default.REQUIRED
    return CatalogParameter(
        name=rule.path.rpartition(".")[2],
        type=rule.type,
        default_json="" if is_required else json.dumps(rule.default),
        limits=rule.limits,
        required=is_required,
    )


def _entries(section: str, descriptions: dict[str, str], tasks: dict[str, tuple[str, ...]]) -> list[CatalogEntry]:
    return [
        CatalogEntry(
            name=kind,
            description=descriptions[kind],
            parameters=[_parameter(rule) for rule in FIELD_RULES if rule.path.startswith(f"{section}.{kind}.")],
            tasks=tasks[kind],
        )
        for kind in sorted(kinds_of(section))
    ]


def models() -> list[CatalogEntry]:
    """List the models, by name."""
    return _entries("model", _MODELS, MODEL_TASKS)


def datasets() -> list[CatalogEntry]:
    """List the kinds of data, by name."""
    return _entries("data", _DATASETS, DATASET_TASKS)
