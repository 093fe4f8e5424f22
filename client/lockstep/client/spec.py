"""Specs from files, mappings and the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from lockstep.client._literal_numbers import WrittenFloat, WrittenInt
from lockstep.client._spec_check import check_spec
from lockstep.client._spec_form import choices_of, fit, is_map, map_value
from lockstep.client.errors import InvalidSpec, Violation
from lockstep.v1.job_spec_pb2 import JobSpec

_JOB_SPEC = cast(Descriptor, JobSpec.DESCRIPTOR)

_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)

SpecLike: TypeAlias = JobSpec | Mapping[str, Any] | str | os.PathLike[str]


def load_spec(spec: SpecLike, overrides: Iterable[str] = ()) -> JobSpec:
    """Make a JobSpec.

    Args:
        spec: a JobSpec, a mapping of the same form, or the path of a YAML or JSON file; "-" is standard input.
        overrides: what to set over it, each "path=value" with the value in YAML, such as "training.seed=7", or for a
            field of text the text itself. Setting one of several choices ("model.lenet={}") replaces the other.

    Raises:
        InvalidSpec: it cannot be read, or has keys or types that a JobSpec has not. All of them are named at once.
    """
    loaded, misfits = read_spec(spec, overrides)
    if misfits:
        raise InvalidSpec(misfits)
    return loaded


def load_right_spec(spec: SpecLike, overrides: Iterable[str] = ()) -> JobSpec:
    """Make a JobSpec that breaks no rule of the contract; see load_spec.

    Raises:
        InvalidSpec: it cannot be read, has keys or types that a JobSpec has not, or breaks rules. All is named at once.
    """
    loaded, misfits = read_spec(spec, overrides)
    check_spec(loaded, misfits)
    return loaded


def read_spec(spec: SpecLike, overrides: Iterable[str] = ()) -> tuple[JobSpec, list[Violation]]:
    """Read as much of a spec as can be read; see load_spec.

    Returns:
        What fits into a JobSpec, and every misfit.

    Raises:
        InvalidSpec: there is nothing to be read.
    """
    overrides = list(overrides)
    if isinstance(spec, JobSpec):
        if not overrides:
            return spec, []
        spec = message_to_dict(spec)
    if not isinstance(spec, Mapping | str | os.PathLike):
        raise TypeError(f"a spec is a JobSpec, a mapping or the path of a file, not {type(spec).__name__}")
    data = spec if isinstance(spec, Mapping) else _read(spec)
    for override in overrides:
        data = _set(data, override)
    fitted, misfits = fit(data, _JOB_SPEC)
    try:
        return json_format.ParseDict(fitted, JobSpec()), misfits
    except json_format.ParseError as error:
        raise InvalidSpec(misfits or str(error)) from error


def message_to_dict(message: Message) -> dict[str, Any]:
    """The JSON form of a message, with the field names of the contract, and every whole number as a number.

    protobuf's own JSON has integers of 64 bits as text; `jq '.progress.step > 100'` wants a number. Both are read back.
    """
    form = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return cast(dict[str, Any], _with_numbers(form, cast(Descriptor, message.DESCRIPTOR)))


def _with_numbers(form: Any, descriptor: Descriptor) -> Any:
    if not isinstance(form, dict):  # a time, a duration
        return form
    fields = descriptor.fields_by_name
    return {name: _with_number(value, fields[name]) for name, value in form.items()}


def _with_number(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_with_number(item, field) for item in value]
    if is_map(field):
        return {key: _with_number(item, map_value(field)) for key, item in value.items()}
    if field.message_type is not None:
        return _with_numbers(value, field.message_type)
    return int(value) if field.cpp_type in _WIDE else value


def _read(path: str | os.PathLike[str]) -> Mapping[Any, Any]:
    name = os.fspath(path)
    text = _read_text(name)
    try:
        if name.endswith(".json"):
            data = json.loads(
                text, object_pairs_hook=_without_duplicates, parse_int=WrittenInt, parse_float=WrittenFloat
            )
        else:
            from lockstep.client import _yaml  # brings PyYAML, which a dict or a JobSpec does not need

            data = _yaml.parse(text)
    except json.JSONDecodeError as error:
        message = f"{name}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        raise InvalidSpec(message) from error
    except (ValueError, RecursionError) as error:
        kind = "JSON" if name.endswith(".json") else "YAML"
        problem = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InvalidSpec(f"{name}: not valid {kind}: {problem}") from error
    if data is None:
        raise InvalidSpec(f"{name}: is empty; a spec has at least model, data and optimizer")
    if not isinstance(data, Mapping):
        raise InvalidSpec(f"{name}: a spec must be a mapping of keys to values, not {_kind(data)}")
    return data


def _read_text(name: str) -> str:
    try:
        if name == "-":
            if sys.stdin is None:
                raise InvalidSpec("-: standard input is closed")
            return sys.stdin.buffer.read().decode()
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InvalidSpec(f"{name}: there is no such file") from error
    except IsADirectoryError as error:
        raise InvalidSpec(f"{name}: is a folder, not a file") from error
    except UnicodeDecodeError as error:
        raise InvalidSpec(f"{name}: is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidSpec(f"{name}: cannot be read: {reason}") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"key {key!r} twice")
        mapping[key] = value
    return mapping


def _kind(data: object) -> str:
    return "a list" if isinstance(data, list) else "a single value"


def _set(data: Mapping[Any, Any], override: str) -> dict[Any, Any]:
    """A copy of the data with one value set; mappings on the way are made, other choices of a oneof dropped."""
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise InvalidSpec([Violation(override, "must have the form path=value, such as training.seed=7")])
    result = dict(data)
    inside: dict[Any, Any] = result
    descriptor: Descriptor | None = _JOB_SPEC
    field: FieldDescriptor | None = None
    keys = path.split(".")
    while keys:
        key = keys.pop(0)
        field = descriptor.fields_by_name.get(key) if descriptor is not None else None
        if field is not None and (oneof := choices_of(field)) is not None:
            for other in oneof.fields:
                if other.name != key:
                    inside.pop(other.name, None)
        if field is not None and is_map(field) and keys:
            keys = [".".join(keys)]  # a label's key may have dots
            descriptor, field = None, map_value(field)
            inside = _enter(inside, key, path)
            key = keys.pop()
        elif keys:
            descriptor = field.message_type if field is not None else None
            inside = _enter(inside, key, path)
    inside[key] = _parse_value(text, field, path)
    return result


def _enter(outer: dict[Any, Any], key: str, path: str) -> dict[Any, Any]:
    inner = outer.get(key)
    if inner is not None and not isinstance(inner, Mapping):
        raise InvalidSpec([Violation(path, f"cannot be set: {key} is not a mapping")])
    outer[key] = dict(inner or {})
    entered: dict[Any, Any] = outer[key]
    return entered


def _parse_value(text: str, field: FieldDescriptor | None, path: str) -> Any:
    """The value of an override. For a field of text it is the text as it was given, unless that is in quotes."""
    from lockstep.client import _yaml

    is_single = field is not None and field.message_type is None and not field.is_repeated
    wants_text = is_single and field is not None and field.cpp_type == FieldDescriptor.CPPTYPE_STRING
    if not text.strip():
        hint = f" for an empty text write {path}='\"\"'" if wants_text else ""
        raise InvalidSpec([Violation(path, f"has no value in --set; is a shell variable empty?{hint}")])
    if field is None or (wants_text and not text.startswith(("'", '"'))):
        return text
    if is_single and not wants_text and "#" in text:
        raise InvalidSpec([Violation(path, f"the value {text!r} holds a comment; leave it out")])
    try:
        return _yaml.parse(text)
    except ValueError as error:
        raise InvalidSpec([Violation(path, f"the value {text!r} is not valid YAML: {error}")]) from error
