"""The walk over the fields of a spec: each is checked or gets its default, then come the rules over several fields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any

from lockstep.contract.spec.fields import FieldPath, FieldRule, kinds_of, place_of
from lockstep.contract.spec.values import show
from lockstep.contract.wording import count
from lockstep.v1.job_spec_pb2 import JobSpec

_MAX_SHOWN_ITEMS = 3

Shown = Callable[[str], str]
"""Gives a field with its value as a sentence's beginning: `training.batch_size is 0`."""

Sections = tuple[tuple[FieldPath, tuple[tuple[FieldRule, FieldPath], ...]], ...]


@dataclass(frozen=True)
class ComputedDefault:
    """A default that follows from other fields.

    Attributes:
        path: the field that has it.
        reads: fields that it follows from; where one of them is wrong, nothing follows from the default.
        value: the default in a spec that has all other defaults; None when it stays unset.
    """

    path: str
    reads: tuple[str, ...]
    value: Callable[[JobSpec], Any]


@dataclass(frozen=True)
class ChoiceRule:
    """The rule that exactly one kind of a oneof is set. `path` is the message around it."""

    path: str

    @property
    def limits(self) -> str:
        return "exactly one kind"


@dataclass(frozen=True)
class RuleOverFields:
    """A rule that joins several fields.

    Attributes:
        path: the field that is blamed.
        reads: fields that must be right by themselves before the rule means anything; "data.idx.*" says that this kind
            must be chosen.
        limits: what is allowed, in words.
        hint: what to do, in words.
    """

    path: str
    reads: tuple[str, ...]
    limits: str
    hint: str

    @cached_property
    def folders(self) -> tuple[FieldPath, ...]:
        """A place in each message that it reads of."""
        return tuple({place.folder: place for place in map(place_of, self.reads)}.values())


@dataclass(frozen=True)
class CrossRule(RuleOverFields):
    """A rule over several fields that a spec alone can break.

    Attributes:
        problem: the sentence without the hint when a spec breaks the rule, else None.
    """

    problem: Callable[[JobSpec, Shown], str | None]


class Parents:
    """The messages that hold the fields of a spec, each found once."""

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self._found: dict[str, Any] = {}

    def of(self, place: FieldPath) -> Any | None:
        """Return the message that holds a field; None when it belongs to a kind that is not chosen."""
        try:
            return self._found[place.folder]
        except KeyError:
            parent = self._found[place.folder] = _parent_of(self.spec, place)
            return parent


@dataclass
class Resolution:
    """A spec on its way from what was submitted to what is stored.

    Attributes:
        spec: it; defaults are filled in as the walk goes on.
        unread: paths of what the user wrote and could not be put into the spec, such as "data", "training.seed" and
            "model.mlp.hidden_units[1]"; they are somebody else's to name.
        violations: fields at fault, each with its message.
        wrong: fields from whose values nothing follows: at fault, unread, or defaults that follow from such.
        defaulted: fields that have their default.
    """

    spec: JobSpec
    unread: frozenset[str] = frozenset()
    violations: list[tuple[str, str]] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    defaulted: set[str] = field(default_factory=set)
    parents: Parents = field(init=False)

    def __post_init__(self) -> None:
        self.parents = Parents(self.spec)

    def blame(self, path: str, message: str, *, rule_path: str = "") -> None:
        self.violations.append((path, message))
        self.wrong.add(rule_path or path)

    def shown(self, path: str) -> str:
        """See `Shown`."""
        parent = parent_of(self.spec, path)
        value = None if parent is None else getattr(parent, path.rpartition(".")[2])
        note = " (the default)" if path in self.defaulted else ""
        return f"{path} is {show(value)}{note}"

    def can_judge(self, rule: RuleOverFields) -> bool:
        """Whether a rule means anything here: the kinds that it reads are chosen, and each field is right by itself."""
        for place in rule.folders:
            if self.parents.of(place) is None:
                return False
        return not self.wrong or self.wrong.isdisjoint(rule.reads)


def parent_of(spec: JobSpec, path: str) -> Any | None:
    """Find the message that holds the field `path`; None when it belongs to a kind that is not chosen."""
    return _parent_of(spec, place_of(path))


def _parent_of(spec: JobSpec, place: FieldPath) -> Any | None:
    message: Any = spec
    for name, is_choice in place.parents:
        if is_choice and not message.HasField(name):
            return None
        message = getattr(message, name)
    return message


def sections_of(rules: Iterable[FieldRule]) -> Sections:
    """Group rules that follow each other and whose fields are in the same message, which is then looked for once."""
    placed = [(rule, place_of(rule.path)) for rule in rules]
    groups = groupby(placed, key=lambda row: row[1].folder)
    return tuple((rows[0][1], tuple(rows)) for rows in (list(group) for _, group in groups))


def doubt_unread(sections: Sections, resolution: Resolution) -> None:
    """Count every field as wrong that was not read, or of which a part or the message around it was not read."""
    for path in resolution.unread:
        whole = path.partition("[")[0]
        for _, rows in sections:
            for rule, _ in rows:
                if f"{rule.path}.".startswith(f"{whole}.") or (rule.counts and whole.startswith(f"{rule.path}.")):
                    resolution.wrong.add(rule.path)


def apply_choice(rule: ChoiceRule, resolution: Resolution) -> None:
    """Check that a kind is chosen."""
    if getattr(resolution.spec, rule.path).WhichOneof("kind") is not None:
        return
    if any(f"{path}.".startswith(f"{rule.path}.") for path in resolution.unread):
        return  # something was chosen
    resolution.blame(rule.path, f"{rule.path}: missing; set one of {', '.join(kinds_of(rule.path))}")


def apply_fields(sections: Sections, computed: Iterable[ComputedDefault], resolution: Resolution) -> None:
    """Fill in the defaults of fields, or check what is there, field by field."""
    for first, rows in sections:
        parent = resolution.parents.of(first)
        if parent is None:
            continue
        for rule, place in rows:
            if _is_set(parent, place):
                _check(rule, getattr(parent, place.name), resolution)
            elif rule.default is not None:
                _give_default(parent, place.name, rule.default)
                resolution.defaulted.add(rule.path)
            elif rule.required and rule.path not in resolution.wrong:
                resolution.blame(rule.path, f"{rule.path}: missing; allowed: {rule.limits}; {rule.hint}")
    for default in computed:
        if _compute(default, resolution.parents):
            resolution.defaulted.add(default.path)
            if not resolution.wrong.isdisjoint(default.reads):
                resolution.wrong.add(default.path)


def fill_in(sections: Sections, computed: Iterable[ComputedDefault], spec: JobSpec) -> None:
    """Give fields their defaults that have no value yet, and leave the others as they are."""
    parents = Parents(spec)
    for first, rows in sections:
        parent = parents.of(first)
        if parent is None:
            continue
        for rule, place in rows:
            if rule.default is not None and not _is_set(parent, place):
                _give_default(parent, place.name, rule.default)
    for default in computed:
        _compute(default, parents)


def apply_cross(rule: CrossRule, resolution: Resolution) -> None:
    """Check a rule over several fields, when each is right by itself."""
    if not resolution.can_judge(rule):
        return
    problem = rule.problem(resolution.spec, resolution.shown)
    if problem is not None:
        resolution.violations.append((rule.path, f"{problem}; {rule.hint}"))


def _compute(default: ComputedDefault, parents: Parents) -> bool:
    place = place_of(default.path)
    parent = parents.of(place)
    if parent is None or _is_set(parent, place):
        return False
    value = default.value(parents.spec)
    if value is None:
        return False
    _give_default(parent, place.name, value)
    return True


def _is_set(parent: Any, place: FieldPath) -> bool:
    return bool(parent.HasField(place.name)) if place.has_presence else bool(getattr(parent, place.name))


def _give_default(parent: Any, name: str, value: Any) -> None:
    if isinstance(value, list):
        getattr(parent, name).extend(value)
    else:
        setattr(parent, name, value)


def _check(rule: FieldRule, value: Any, resolution: Resolution) -> None:
    if rule.counts is not None:
        _check_items(rule, value, resolution)
    elif rule.allows is not None and not rule.allows(value):
        resolution.blame(rule.path, f"{rule.path} is {show(value)}; allowed: {rule.limits}; {rule.hint}")


def _check_items(rule: FieldRule, value: Any, resolution: Resolution) -> None:
    assert rule.counts is not None
    least, most = rule.counts
    if not least <= len(value) <= most:
        message = f"{rule.path} has {count(len(value), 'item')}; allowed: {rule.limits}; {rule.hint}"
        resolution.blame(rule.path, message)
        return
    if rule.allows is None:
        return
    bad = [(f"{rule.path}{where}", item) for where, item in _items(value) if not rule.allows(item)]
    if resolution.unread:
        bad = [(path, item) for path, item in bad if path not in resolution.unread]
    for number, (path, item) in enumerate(bad[:_MAX_SHOWN_ITEMS]):
        shown = f"{path} is {show(item[1] if isinstance(item, tuple) else item)}"
        rest = len(bad) - _MAX_SHOWN_ITEMS
        more = f" ({rest:,} more are wrong)" if rest > 0 and number == _MAX_SHOWN_ITEMS - 1 else ""
        resolution.blame(path, f"{shown}; allowed: {rule.limits}; {rule.hint}{more}", rule_path=rule.path)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (where, item) for each item of a list or a map."""
    if hasattr(value, "items"):
        for key in sorted(value):
            yield f"[{show(key)}]", (key, value[key])
    else:
        for number, item in enumerate(value):
            yield f"[{number}]", item
