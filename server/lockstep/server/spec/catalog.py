"""What a spec may say of models, data and optimizers: the options of the contract, told to people."""

from __future__ import annotations

import json

from lockstep.contract.spec.fields import FieldRule, kinds_of
from lockstep.contract.spec.validation import FIELD_RULES
from lockstep.v1.catalog_service_pb2 import CatalogEntry, CatalogParameter


def _parameter(rule: FieldRule) -> CatalogParameter:
    return CatalogParameter(
        name=rule.path.rpartition(".")[2],
        type=rule.type,
        default_json="" if rule.required else json.dumps(rule.default),
        limits=rule.limits,
        required=rule.required,
    )


def _entries(section: str) -> list[CatalogEntry]:
    return [
        CatalogEntry(
            name=kind,
            description=facts.description,
            parameters=[_parameter(rule) for rule in FIELD_RULES if rule.path.startswith(f"{section}.{kind}.")],
            tasks=facts.tasks,
        )
        for kind, facts in sorted(kinds_of(section).items())
    ]


def models() -> list[CatalogEntry]:
    """List the models, by name."""
    return _entries("model")


def datasets() -> list[CatalogEntry]:
    """List the kinds of data, by name."""
    return _entries("data")


def optimizers() -> list[CatalogEntry]:
    """List the optimizers, by name."""
    return _entries("optimizer")
