"""The rules that stand in the options of the contract, and how those over several fields go together."""

from __future__ import annotations

import re
from typing import Any

from lockstep.contract import bounds
from lockstep.contract.spec.fields import kinds_of, place_of
from lockstep.server.spec.validation import FIELD_RULES, fields_with_files
from lockstep.v1 import options_pb2
from lockstep.v1.job_spec_pb2 import JobSpec
from tests.support.specs import DIGITS, LENET, spec_of, violations_of


def test_every_field_of_the_contract_has_a_rule() -> None:
    ruled = {rule.path for rule in FIELD_RULES}

    def leaves(descriptor: Any, prefix: str) -> set[str]:
        found = set()
        for field in descriptor.fields:
            path = f"{prefix}{field.name}"
            is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
            found |= leaves(field.message_type, f"{path}.") if field.message_type and not is_map else {path}
        return found

    assert leaves(JobSpec.DESCRIPTOR, "") == ruled


def test_a_rule_between_two_right_fields_is_named_beside_a_third_that_is_wrong() -> None:
    spec = spec_of(DIGITS, resources__workers=9, resources__shards=4, training__batch_size=0)
    assert [violation.field for violation in violations_of(spec)] == ["training.batch_size", "resources.workers"]


def test_one_broken_rule_over_several_fields_hides_no_other() -> None:
    spec = spec_of(DIGITS, resources__workers=9, resources__shards=4, resources__min_workers=10)
    assert {violation.field for violation in violations_of(spec)} == {"resources.workers", "resources.min_workers"}


def test_nothing_follows_from_a_default_that_follows_from_a_wrong_field() -> None:
    spec = spec_of(DIGITS, resources__workers=9, training__batch_size=0)
    assert [violation.field for violation in violations_of(spec)] == ["training.batch_size"]


def test_words_of_the_contract_and_its_bounds_say_the_same() -> None:
    for rule, option in [(rule, option_of(rule.path)) for rule in FIELD_RULES]:
        counts = [option.most_items] if option.HasField("most_items") else []
        bounds = [getattr(option, name) for name in ("at_least", "at_most") if option.HasField(name)]
        numbers = {float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*\.?\d*", rule.limits)}
        if option.limits and not option.pattern:
            wanted = {float(bound) for bound in [*bounds, *counts] if bound}
            assert wanted - numbers <= ({64.0} if rule.path in ("model.mlp.dropout", "init_from.job_id") else set())
        assert rule.default is None or rule.counts or rule.allows is None or rule.allows(rule.default), rule.path
        assert rule.meaning and rule.hint, rule.path


def test_bounds_that_the_workers_keep_are_those_of_the_contract() -> None:
    most = {
        "training.max_epochs": bounds.MOST_EPOCHS,
        "training.max_steps": bounds.MOST_STEPS,
        "training.log_every_steps": bounds.MOST_STEPS,
        "training.evaluate_every_steps": bounds.MOST_STEPS,
        "recovery.checkpoint_every_steps": bounds.MOST_STEPS,
        "resources.workers": bounds.MOST_SHARDS,
        "resources.shards": bounds.MOST_SHARDS,
        "resources.min_workers": bounds.MOST_SHARDS,
        "resources.cpus_per_worker": bounds.MOST_CPUS_PER_WORKER,
    }
    assert {path: option_of(path).at_most for path in most} == most
    assert kinds_of("model")["lenet"].least_image_side == bounds.LENET_LEAST_PIXELS


def option_of(path: str) -> Any:
    place = place_of(path)
    descriptor: Any = JobSpec.DESCRIPTOR
    for name, _ in place.parents:
        descriptor = descriptor.fields_by_name[name].message_type
    return descriptor.fields_by_name[place.name].GetOptions().Extensions[options_pb2.rule]


def test_only_specs_that_name_files_wait_for_a_disk() -> None:
    assert fields_with_files(spec_of(DIGITS)) == []
    assert fields_with_files(spec_of(LENET, init_from__uri="/c")) == ["data.idx.root", "init_from.uri"]
