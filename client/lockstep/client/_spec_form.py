"""The form of a spec: which keys there are and what type each has, with a message for everything that does not fit.

This finds what cannot be put into a JobSpec at all, and says it by path in the words of the one who wrote the spec.
What the values may be is another matter: _spec_check.py.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, SupportsInt, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor

from lockstep.client._literal_numbers import WrittenFloat, WrittenInt
from lockstep.client.errors import Violation
from lockstep.v1 import options_pb2
from lockstep.v1.job_spec_pb2 import JobSpec

_INTEGER_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (True, 32),
    FieldDescriptor.CPPTYPE_INT64: (True, 64),
    FieldDescriptor.CPPTYPE_UINT32: (False, 32),
    FieldDescriptor.CPPTYPE_UINT64: (False, 64),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_LONG_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_LONGEST_SHOWN = 60
_NEAR = 0.8
"""How like a known key an unknown one must be to be taken for it: batchsize for batch_size, not resnet for lenet."""


@dataclass(frozen=True)
class Ambiguous:
    """A plain YAML scalar that YAML 1.1 and 1.2 read differently, as it was written."""

    text: str


class MisfitError(ValueError):
    """A value does not fit its field; the message says how."""


def fit(data: Mapping[Any, Any], descriptor: Descriptor) -> tuple[dict[str, Any], list[Violation]]:
    """Fit data to a message.

    Returns:
        What json_format.ParseDict takes, without what does not fit; and every misfit.
    """
    violations: list[Violation] = []
    return _fit_message(data, descriptor, "", violations), violations


def choices_of(field: FieldDescriptor) -> OneofDescriptor | None:
    """The oneof that a field belongs to, unless it is the hidden one of an optional field."""
    oneof = field.containing_oneof
    return oneof if oneof is not None and oneof.name != f"_{field.name}" else None


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def map_value(field: FieldDescriptor) -> FieldDescriptor:
    """The field that describes the values of a map."""
    assert field.message_type is not None
    return field.message_type.fields_by_name["value"]


def _fit_message(
    data: Mapping[Any, Any], descriptor: Descriptor, path: str, violations: list[Violation]
) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    chosen: dict[str, list[str]] = {}
    for key, value in data.items():
        field = descriptor.fields_by_name.get(key) if isinstance(key, str) else None
        if field is None:
            violations.append(Violation(_join(path, _show_key(key)), _unknown_key(key, descriptor, path)))
            continue
        where = _join(path, field.name)
        if (oneof := choices_of(field)) is not None:
            chosen.setdefault(oneof.name, []).append(field.name)
            if value is None:
                violations.append(Violation(where, f"has no value; for its defaults write {field.name}: {{}}"))
                continue
        if value is not None:  # null is the JSON form of "not set"
            try:
                fitted[field.name] = _fit_field(value, field, where, violations)
            except MisfitError as misfit:
                violations.append(Violation(where, str(misfit)))
    for oneof_name, names in chosen.items():
        if len(names) > 1:
            violations.append(Violation(path, _two_choices(descriptor.oneofs_by_name[oneof_name], names)))
            for name in names:
                fitted.pop(name, None)
    return fitted


def _fit_field(value: Any, field: FieldDescriptor, path: str, violations: list[Violation]) -> Any:
    """Fit the value of one field.

    Raises:
        MisfitError: it is a single value that does not fit; all else is noted.
    """
    if is_map(field):
        return _fit_map(value, field, path, violations)
    if field.is_repeated:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            hint = f"; write [{_show(value)}]" if isinstance(value, str | int | float) else ""
            violations.append(Violation(path, f"must be a list, got {_show(value)}{hint}"))
            return []
        return [_fit_item(item, field, f"{path}[{index}]", violations) for index, item in enumerate(value)]
    return _fit_single(value, field, path, violations)


def _fit_map(value: Any, field: FieldDescriptor, path: str, violations: list[Violation]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        violations.append(Violation(path, f"must be a mapping, got {_show(value)}"))
        return {}
    value_field = map_value(field)
    fitted = {}
    for key, item in value.items():
        where = _join(path, _show_key(key))
        if not isinstance(key, str):
            violations.append(Violation(where, f'the key must be text; write "{_show_key(key)}" in quotes'))
            continue
        try:
            fitted[key] = _fit_single(item, value_field, where, violations)
        except MisfitError as misfit:
            violations.append(Violation(where, str(misfit)))
    return fitted


def _fit_item(value: Any, field: FieldDescriptor, path: str, violations: list[Violation]) -> Any:
    """Fit one item of a list; one that does not fit is noted, and the zero of its type keeps its place."""
    try:
        return _fit_single(value, field, path, violations)
    except MisfitError as misfit:
        violations.append(Violation(path, str(misfit)))
        return "" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 0


def _fit_single(value: Any, field: FieldDescriptor, path: str, violations: list[Violation]) -> Any:
    if field.message_type is None:
        return _fit_scalar(value, field)
    if isinstance(value, Mapping):
        return _fit_message(value, field.message_type, path, violations)
    violations.append(Violation(path, f"must be a mapping, got {_show(value)}{_mapping_hint(value, field)}"))
    return {}


def _fit_scalar(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, Ambiguous):
        raise MisfitError(_ambiguous(value, field))
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _fit_text(value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise MisfitError(f"must be true or false, got {_show(value)}")
        return value
    if field.cpp_type in _INTEGER_BITS:
        return _fit_integer(value, field)
    if field.cpp_type in _FLOATS:
        return _fit_number(value)
    return value


def _fit_text(value: Any) -> str:
    if not isinstance(value, str):
        hint = ""
        if isinstance(value, bool):
            hint = "; write it in quotes"  # whether it was true or True is not known
        elif isinstance(value, Real):
            hint = f'; write it in quotes: "{_show(value)}"'
        raise MisfitError(f"must be text, got {_show(value)}{hint}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MisfitError("is not valid Unicode text") from None
    return value


def _fit_integer(value: Any, field: FieldDescriptor) -> int:
    if isinstance(value, str) and field.cpp_type in _LONG_INTEGERS and value.removeprefix("-").isdecimal():
        value = WrittenInt(value)  # the JSON form of 64 bits is a string
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MisfitError(f"must be a whole number, got {_show(value)}")
    if not isinstance(value, Integral) and not float(value).is_integer():
        options: Any = field.GetOptions()
        hint = options.Extensions[options_pb2.rule].hint
        raise MisfitError(f"must be a whole number, got {_show(value)}{hint and f'; {hint}'}")
    number = int(cast(SupportsInt, value))
    is_signed, bits = _INTEGER_BITS[field.cpp_type]
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    if number < low:
        raise MisfitError(f"must be at least {low}, got {_show(value)}")
    if number > high:
        raise MisfitError(f"must be at most {high}, got {_show(value)}")
    return number


def _fit_number(value: Any) -> float | str:
    if value in ("NaN", "Infinity", "-Infinity"):
        return str(value)  # the JSON form of these; the server says where they are not allowed
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MisfitError(f"must be a number, got {_show(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise MisfitError(f"must be a number below 1.8e308, got {_show(value)}") from None
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _ambiguous(value: Ambiguous, field: FieldDescriptor) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return f'{value.text} is not text to every version of YAML; write it in quotes: "{value.text}"'
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return f"must be true or false, got {value.text}"
    if value.text.lstrip("+-").startswith("0"):
        return f"{value.text} is not the same number in every version of YAML; write {int(WrittenInt(value.text))}"
    return f"must be a {'number' if field.cpp_type in _FLOATS else 'whole number'}, got {value.text}"


def _unknown_key(key: Any, descriptor: Descriptor, path: str) -> str:
    names = list(descriptor.fields_by_name)
    if not names:
        return f"unknown key; {path or 'this'} has nothing to set"
    near = difflib.get_close_matches(str(key).lower().replace("-", "_"), names, n=1, cutoff=_NEAR)
    elsewhere = [found for found in _paths_of(cast(Descriptor, JobSpec.DESCRIPTOR)) if _last(found) == key]
    guess = f"did you mean {' or '.join(near or elsewhere)}? " if near or elsewhere else ""
    return f"unknown key; {guess}allowed: {', '.join(names)}"


def _paths_of(descriptor: Descriptor, path: str = "") -> Iterator[str]:
    """The path of every field of a spec."""
    for field in descriptor.fields:
        where = _join(path, field.name)
        yield where
        if field.message_type is not None and not is_map(field):
            yield from _paths_of(field.message_type, where)


def _two_choices(oneof: OneofDescriptor, names: Sequence[str]) -> str:
    allowed = [field.name for field in oneof.fields]
    given = f"both {names[0]} and {names[1]}" if len(names) == 2 else ", ".join(names[:-1]) + f" and {names[-1]}"
    return f"set exactly one of {', '.join(allowed)}, not {given}"


def _mapping_hint(value: Any, field: FieldDescriptor) -> str:
    """How to write {mlp: {}} for someone who wrote mlp."""
    assert field.message_type is not None
    inside = field.message_type.fields_by_name.get(value) if isinstance(value, str) else None
    return f"; write {field.name}: {{{value}: {{}}}}" if inside is not None and inside.message_type is not None else ""


def _show(value: Any) -> str:
    """A value in the words of YAML, cut short."""
    if isinstance(value, Ambiguous):
        return value.text
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, WrittenInt | WrittenFloat) and len(value.text) <= _LONGEST_SHOWN:
        return value.text
    if isinstance(value, int) and value.bit_length() > 8 * _LONGEST_SHOWN:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        shown = json.dumps(value[: _LONGEST_SHOWN + 1], ensure_ascii=False)
        return shown if len(value) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
    if isinstance(value, Real):
        return str(value)
    return "a list" if isinstance(value, Sequence) else f"a {type(value).__name__}"


def _show_key(key: Any) -> str:
    if isinstance(key, str):
        return key if len(key) <= _LONGEST_SHOWN else f"{key[:_LONGEST_SHOWN]}…"
    return _show(key)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _last(path: str) -> str:
    return path.rpartition(".")[2]
