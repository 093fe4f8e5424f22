"""What a row of the table of rules is, and how a row is applied to a spec."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from lockstep.contract.wording import count
from lockstep.server.errors import Violation
from lockstep.v1.job_spec_pb2 import JobSpec

DEFAULT_POINTS_PER_JOB = 100_000_000

_MAX_SHOWN_LENGTH = 80
_MAX_SHOWN_ITEMS = 3


class Default(Enum):
    """Defaults that are no values."""

    REQUIRED = "must be given"
    UNSET = "stays unset"


@dataclass(frozen=True)
class Site:
    """What the rules may know of the place where the server runs.

    Attributes:
        working_directory: where relative paths of a spec start.
        shares_files_with_workers: whether a path that is missing here is missing for the workers, too.
        checkpoint_roots: folders, as paths or URIs, in which checkpoints may lie; empty for any.
        points_per_job: the most metric points that a job may make.
    """

    working_directory: Path
    shares_files_with_workers: bool
    checkpoint_roots: tuple[str, ...] = ()
    points_per_job: int = DEFAULT_POINTS_PER_JOB


@dataclass(frozen=True)
class FieldRule:
    """The rule of one field.

    Attributes:
        path: the field, from the spec on, such as "training.batch_size".
        type: its type in words.
        limits: what is allowed, in words.
        hint: what to do when it is something else, in words.
        default: a value, a function of the spec resolved so far, or one of `Default`.
        allows: whether a value is allowed; for a repeated field one item, for a map one (key, value).
        counts: least and largest number of items of a repeated field or a map.
        normal: puts an allowed value into the form that is stored.
    """

    path: str
    type: str
    limits: str
    hint: str
    default: Any = Default.UNSET
    allows: Callable[[Any], bool] | None = None
    counts: tuple[int, int] | None = None
    normal: Callable[[Any, Site], Any] | None = None


@dataclass(frozen=True)
class ChoiceRule:
    """The rule that exactly one kind of a oneof is set. `path` is the message around it."""

    path: str

    @property
    def limits(self) -> str:
        return "exactly one kind"


@dataclass(frozen=True)
class CrossRule:
    """A rule that joins several fields.

    Attributes:
        path: the field that is blamed.
        reads: fields that must be right by themselves before the rule means anything; "data.idx.*" says that this kind
            must be chosen.
        limits: what is allowed, in words.
        hint: what to do, in words.
        problem: the sentence without the hint when a spec breaks the rule, else None.
    """

    path: str
    reads: tuple[str, ...]
    limits: str
    hint: str
    problem: Callable[[JobSpec, Site, Shown], str | None]


class Parents:
    """The messages that hold the fields of a spec, each found once."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self._found: dict[str, Any] = {}

    def of(self, place: _Place) -> Any | None:
        """Return the message that holds a field; None when it belongs to a kind that is not chosen."""
        try:
            return self._found[place.folder]
        except KeyError:
            parent = self._found[place.folder] = _parent_of(self.spec, place)
            return parent


@dataclass
class Resolution:
    """A spec on its way from what was submitted to what is stored."""

    spec: JobSpec
    site: Site
    violations: list[Violation] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    defaulted: set[str] = field(default_factory=set)
    parents: Parents = field(init=False)

    def __post_init__(self) -> None:
        self.parents = Parents(self.spec)

    def blame(self, path: str, message: str, *, rule_path: str = "") -> None:
        self.violations.append(Violation(path, message))
        self.wrong.add(rule_path or path)

    def shown(self, path: str) -> str:
        """The field with its value as a sentence's beginning: `training.batch_size is 0`."""
        parent = parent_of(self.spec, path)
        value = None if parent is None else getattr(parent, path.rpartition(".")[2])
        note = " (the default)" if path in self.defaulted else ""
        return f"{path} is {show(value)}{note}"


Shown = Callable[[str], str]


# Unicode's categories Cc, Zl and Zp.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_controls(text: str) -> bool:
    """Whether there is a control character in it, or one that breaks a line as some of them do."""
    return _CONTROLS.search(text) is not None


def is_path(value: str) -> bool:
    """Whether it can be a path: not too long, and without control characters."""
    return len(value) <= 4096 and not has_controls(value)


def show(value: Any) -> str:
    """Write a value for a message: short, and with nothing unprintable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return ("-" if value < 0 else "") + "infinity" if math.isinf(value) else f"{value:.15g}"
    if isinstance(value, int):
        return str(value)
    text = json.dumps(str(value), ensure_ascii=True)
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[: _MAX_SHOWN_LENGTH - 4]}...{text[-1]}"


@dataclass(frozen=True)
class _Place:
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
def _place_of(path: str) -> _Place:
    descriptor = JobSpec.DESCRIPTOR
    *names, leaf = path.split(".")
    parents = []
    for name in names:
        field = descriptor.fields_by_name[name]
        parents.append((name, field.containing_oneof is not None))
        assert field.message_type is not None
        descriptor = field.message_type
    found = descriptor.fields_by_name.get(leaf)
    return _Place(".".join(names), tuple(parents), leaf, found is not None and found.has_presence)


@cache
def _places_of(paths: tuple[str, ...]) -> tuple[_Place, ...]:
    return tuple(map(_place_of, paths))


def parent_of(spec: JobSpec, path: str) -> Any | None:
    """Find the message that holds the field `path`; None when it belongs to a kind that is not chosen."""
    return _parent_of(spec, _place_of(path))


def _parent_of(spec: JobSpec, place: _Place) -> Any | None:
    message: Any = spec
    for name, is_choice in place.parents:
        if is_choice and not message.HasField(name):
            return None
        message = getattr(message, name)
    return message


def _is_set(parent: Any, place: _Place) -> bool:
    return bool(parent.HasField(place.name)) if place.has_presence else bool(getattr(parent, place.name))


def _give_default(parent: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        getattr(parent, name).extend(value)
    else:
        setattr(parent, name, value)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, item) for each item of a repeated field or a map."""
    if hasattr(value, "items"):
        for key in sorted(value):
            yield f"[{show(key)}]", (key, value[key])
    else:
        for number, item in enumerate(value):
            yield f"[{number}]", item


def _check_items(rule: FieldRule, value: Any, resolution: Resolution) -> None:
    assert rule.counts is not None
    least, most = rule.counts
    if not least <= len(value) <= most:
        message = f"{rule.path} has {count(len(value), 'item')}; allowed: {rule.limits}; {rule.hint}"
        resolution.blame(rule.path, message)
        return
    if rule.allows is None:
        return
    bad = [(where, item) for where, item in _items(value) if not rule.allows(item)]
    for number, (where, item) in enumerate(bad[:_MAX_SHOWN_ITEMS]):
        shown = f"{rule.path}{where} is {show(item[1] if isinstance(item, tuple) else item)}"
        rest = len(bad) - _MAX_SHOWN_ITEMS
        more = f" ({rest:,} more are wrong)" if rest > 0 and number == _MAX_SHOWN_ITEMS - 1 else ""
        message = f"{shown}; allowed: {rule.limits}; {rule.hint}{more}"
        resolution.blame(f"{rule.path}{where}", message, rule_path=rule.path)


Sections = tuple[tuple[_Place, tuple[tuple[FieldRule, _Place], ...]], ...]


def sections_of(rules: Iterable[FieldRule]) -> Sections:
    """Group rows that follow each other and whose fields are in the same message, which is then looked for once."""
    placed = [(rule, _place_of(rule.path)) for rule in rules]
    groups = groupby(placed, key=lambda row: row[1].folder)
    return tuple((rows[0][1], tuple(rows)) for rows in (list(group) for _, group in groups))


def apply_fields(sections: Sections, resolution: Resolution) -> None:
    """Fill in the defaults of fields, or check what is there, row by row."""
    for first, rows in sections:
        parent = resolution.parents.of(first)
        if parent is None:
            continue
        for rule, place in rows:
            if _is_set(parent, place):
                _check(rule, parent, place.name, resolution)
            elif rule.default is Default.UNSET:
                continue
            elif _fill_in(rule, parent, place.name, resolution.spec):
                resolution.defaulted.add(rule.path)
            elif rule.default is Default.REQUIRED:
                resolution.blame(rule.path, f"{rule.path}: missing; allowed: {rule.limits}; {rule.hint}")


def _check(rule: FieldRule, parent: Any, name: str, resolution: Resolution) -> None:
    value = getattr(parent, name)
    if rule.counts is not None:
        _check_items(rule, value, resolution)
    elif rule.allows is not None and not rule.allows(value):
        resolution.blame(rule.path, f"{rule.path} is {show(value)}; allowed: {rule.limits}; {rule.hint}")
    elif rule.normal is not None:
        setattr(parent, name, rule.normal(value, resolution.site))


def _fill_in(rule: FieldRule, parent: Any, name: str, spec: JobSpec) -> bool:
    default = rule.default(spec) if callable(rule.default) else rule.default
    if default is Default.UNSET or default is Default.REQUIRED:
        return False
    _give_default(parent, name, default)
    return True


def kinds_of(path: str) -> list[str]:
    """List what the oneof of the message at `path` offers."""
    descriptor = JobSpec.DESCRIPTOR.fields_by_name[path].message_type
    assert descriptor is not None
    return [option.name for option in descriptor.oneofs_by_name["kind"].fields]


def apply_choice(rule: ChoiceRule, resolution: Resolution) -> None:
    """Check that a kind is chosen."""
    if getattr(resolution.spec, rule.path).WhichOneof("kind") is None:
        resolution.blame(rule.path, f"{rule.path}: missing; set one of {', '.join(kinds_of(rule.path))}")


def apply_cross(rule: CrossRule, resolution: Resolution) -> None:
    """Check a rule over several fields, when each is right by itself."""
    for place in _places_of(rule.reads):
        if resolution.parents.of(place) is None:
            return
    if resolution.wrong and not resolution.wrong.isdisjoint(rule.reads):
        return
    problem = rule.problem(resolution.spec, resolution.site, resolution.shown)
    if problem is not None:
        resolution.blame(rule.path, f"{problem}; {rule.hint}")


def fill_in(sections: Sections, spec: JobSpec) -> None:
    """Give fields their defaults that have no value yet, and leave the others as they are."""
    parents = Parents(spec)
    for first, rows in sections:
        parent = parents.of(first)
        if parent is None:
            continue
        for rule, place in rows:
            if not _is_set(parent, place):
                _fill_in(rule, parent, place.name, spec)


def absolute(path: str, site: Site) -> str:
    """Make a path absolute, from the server's working directory on."""
    # Not Path.resolve: links stay as the user wrote them, since they may lead elsewhere where the workers are.
    return os.path.abspath(site.working_directory / path)  # noqa: PTH100


def is_file(path: Path) -> bool:
    """Whether there is a file that this user may look at."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
