"""The rules of single fields, laid out once from the options of the contract."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from lockstep.contract.spec.values import FOLDER_LIMITS, has_controls, is_folder, show
from lockstep.v1 import options_pb2
from lockstep.v1.job_spec_pb2 import JobSpec

SECTIONS_WITH_KINDS = ("model", "data", "optimizer")

_JOB_SPEC = cast(Descriptor, JobSpec.DESCRIPTOR)
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_LARGEST_UINT32 = 2**32 - 1


@dataclass(frozen=True)
class FieldRule:
    """The rule of one field.

    Attributes:
        path: the field, from the spec on, such as "training.batch_size".
        type: its type in words.
        limits: what is allowed, in words.
        hint: what to do when it is something else, in words.
        meaning: what the field is, in a few words of Markdown.
        required: whether it must be given.
        default: its value when it is not given; None when it has none, or follows from other fields.
        default_words: what happens when it is not given, where no value says it.
        is_path: whether it is a path, which may be relative to the server's working directory.
        allows: whether a value is allowed; for a list one item, for a map one (key, value). None when all are.
        counts: least and largest number of items of a list or a map; None for a single value.
    """

    path: str
    type: str
    limits: str
    hint: str
    meaning: str
    required: bool
    default: Any
    default_words: str
    is_path: bool
    allows: Callable[[Any], bool] | None
    counts: tuple[int, int] | None


@dataclass(frozen=True)
class FieldPath:
    """Where a field is, looked up once.

    Attributes:
        folder: the path of the message around it; empty for the spec itself.
        parents: the messages on the way to it, each with whether it is a kind that may not be chosen.
        name: the field itself; "*" for none in particular.
        has_presence: whether the message says if it is set.
    """

    folder: str
    parents: tuple[tuple[str, bool], ...]
    name: str
    has_presence: bool


@cache
def place_of(path: str) -> FieldPath:
    """Find the place of a field."""
    descriptor = _JOB_SPEC
    *names, leaf = path.split(".")
    parents = []
    for name in names:
        field = descriptor.fields_by_name[name]
        parents.append((name, field.containing_oneof is not None))
        assert field.message_type is not None
        descriptor = field.message_type
    found = descriptor.fields_by_name.get(leaf)
    return FieldPath(".".join(names), tuple(parents), leaf, found is not None and found.has_presence)


@cache
def kinds_of(section: str) -> dict[str, options_pb2.KindFacts]:
    """What the oneof of a section of the spec offers, with what the contract says of each."""
    descriptor = _JOB_SPEC.fields_by_name[section].message_type
    assert descriptor is not None
    members = descriptor.oneofs_by_name["kind"].fields
    return {member.name: _option(member, options_pb2.kind_facts) for member in members}


def field_rules() -> tuple[FieldRule, ...]:
    """Read the rule of every field of a spec, in the order of the contract."""
    return tuple(_rule(path, field) for path, field in _fields(_JOB_SPEC, "") if not _is_section(field))


def meanings_of_sections() -> dict[str, tuple[str, str]]:
    """What each message of a spec is that people are told of: its meaning, and what happens without it."""
    options = {path: _option(field, options_pb2.rule) for path, field in _fields(_JOB_SPEC, "") if _is_section(field)}
    return {path: (option.meaning, option.default_words) for path, option in options.items() if option.meaning}


def _fields(descriptor: Descriptor, prefix: str) -> Iterator[tuple[str, FieldDescriptor]]:
    for field in descriptor.fields:
        yield f"{prefix}{field.name}", field
        if _is_section(field):
            assert field.message_type is not None
            yield from _fields(field.message_type, f"{prefix}{field.name}.")


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _is_section(field: FieldDescriptor) -> bool:
    return field.message_type is not None and not _is_map(field)


def _option(field: FieldDescriptor, extension: Any) -> Any:
    return field.GetOptions().Extensions[extension]


def _rule(path: str, field: FieldDescriptor) -> FieldRule:
    option = _option(field, options_pb2.rule)
    return FieldRule(
        path=path,
        type=_type(field),
        limits=_limits(option, field),
        hint=option.hint,
        meaning=option.meaning,
        required=option.required,
        default=_default(option, field),
        default_words=option.default_words,
        is_path=option.format == options_pb2.TEXT_FORMAT_PATH,
        allows=_allows(option, field),
        counts=(option.least_items, option.most_items) if field.is_repeated else None,
    )


def _type(field: FieldDescriptor) -> str:
    if _is_map(field):
        return "map of strings"
    if field.cpp_type in _FLOATS:
        single = "number"
    else:
        words = {FieldDescriptor.CPPTYPE_STRING: "string", FieldDescriptor.CPPTYPE_BOOL: "boolean"}
        single = words.get(field.cpp_type, "integer")
    return f"list of {single}s" if field.is_repeated else single


def _default(option: options_pb2.FieldRule, field: FieldDescriptor) -> Any:
    if not option.default_json:
        return None
    value = json.loads(option.default_json)
    return float(value) if field.cpp_type in _FLOATS and not isinstance(value, list) else value


def _limits(option: options_pb2.FieldRule, field: FieldDescriptor) -> str:
    """What is allowed, in words: those of the contract, or what the bounds say."""
    if option.limits:
        return str(option.limits)
    if option.words:
        return "one of " + ", ".join(f'"{word}"' for word in option.words)
    if option.format == options_pb2.TEXT_FORMAT_FOLDER:
        return FOLDER_LIMITS
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    return _range(option, field)


def _range(option: options_pb2.FieldRule, field: FieldDescriptor) -> str:
    low, high = _number(option.at_least), _number(option.at_most)
    if option.HasField("at_least") and option.HasField("at_most"):
        neighbours = field.cpp_type not in _FLOATS and option.at_most - option.at_least == 1
        return f"{low} or {high}" if neighbours else f"{low} to {high}"
    if option.HasField("above") and option.HasField("at_most"):
        return f"greater than {_number(option.above)}, at most {high}"
    if option.HasField("above") and option.HasField("below"):
        is_any = math.isinf(option.below)
        return f"greater than {_number(option.above)}{', and finite' if is_any else f' and less than {option.below:g}'}"
    if option.HasField("at_least") and option.HasField("below"):
        return f"{low} or greater, less than {_number(option.below)}"
    if option.HasField("at_least"):
        return f"{low} or greater"
    assert field.cpp_type == FieldDescriptor.CPPTYPE_UINT32, f"the contract does not say what {field.full_name} may be"
    return f"0 to {_LARGEST_UINT32:,}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else show(value)


def _allows(option: options_pb2.FieldRule, field: FieldDescriptor) -> Callable[[Any], bool] | None:
    if _is_map(field):
        return _allows_pair(option)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _allows_text(option)
    is_bounded = any(option.HasField(name) for name in ("at_least", "at_most", "above", "below"))
    return _allows_number(option) if is_bounded else None


def _allows_number(option: options_pb2.FieldRule) -> Callable[[Any], bool]:
    low = option.above if option.HasField("above") else option.at_least if option.HasField("at_least") else -math.inf
    high = option.below if option.HasField("below") else option.at_most if option.HasField("at_most") else math.inf
    match option.HasField("above"), option.HasField("below"):
        case False, False:
            return lambda value: low <= value <= high
        case True, False:
            return lambda value: low < value <= high
        case False, True:
            return lambda value: low <= value < high
        case _:
            return lambda value: low < value < high


def _allows_text(option: options_pb2.FieldRule) -> Callable[[str], bool]:
    if option.words:
        words = frozenset(option.words)
        return lambda value: value in words
    if option.format == options_pb2.TEXT_FORMAT_FOLDER:
        return is_folder
    if option.pattern:
        matches = re.compile(option.pattern).fullmatch
        return lambda value: matches(value) is not None
    longest, must_be_printable = option.most_characters, option.printable
    return lambda value: len(value) <= longest and not (must_be_printable and has_controls(value))


def _allows_pair(option: options_pb2.FieldRule) -> Callable[[tuple[str, str]], bool]:
    matches, longest = re.compile(option.pattern).fullmatch, option.most_characters

    def allows(pair: tuple[str, str]) -> bool:
        key, value = pair
        return matches(key) is not None and len(value) <= longest and not has_controls(value)

    return allows
