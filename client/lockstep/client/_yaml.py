"""YAML as a spec needs it: no value silently becomes something that its writer did not mean.

PyYAML reads YAML 1.1, in which 1e-3 is text, 010 is eight and `no` is false. Here numbers are those of YAML 1.2, and
what the two versions read differently is kept as `Ambiguous`, to be refused with its path. A key that stands twice in
a mapping is an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, cast

import yaml

from lockstep.client._literal_numbers import WrittenFloat, WrittenInt
from lockstep.client._printable import printable
from lockstep.client._spec_form import Ambiguous

_AMBIGUOUS = "!ambiguous"
_PLAIN_SCALARS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    (_AMBIGUOUS, r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|[-+]?0[0-9_]+", list("yYnNoO-+0")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
)


class _Loader(yaml.SafeLoader):  # the one in C overflows its stack on deep nesting
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's way: one table per class

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} twice", key.start_mark)
                seen.add(key.value)
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


for _tag, _pattern, _first in _PLAIN_SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: WrittenInt(_text_of(loader, node)))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: WrittenFloat(_text_of(loader, node)))
_Loader.add_constructor(_AMBIGUOUS, lambda loader, node: Ambiguous(_text_of(loader, node)))


# What PyYAML says in words that a person would not.
_WORDS = {
    "found character '\\t'": "a tab; indent with spaces",
    "found unhashable key": "a key must be a single value",
    "but found another document": "a second document begins; a spec is one",
    "could not determine a constructor for the tag": "a spec has no tags",
}


def _text_of(loader: Any, node: yaml.Node) -> str:
    return str(loader.construct_scalar(cast("yaml.ScalarNode", node)))


def parse(text: str) -> Any:
    """Parse one YAML document.

    Raises:
        ValueError: it is none; the message begins with the place, where that is known.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark or error.context_mark
        where = f"line {place.line + 1}, column {place.column + 1}: " if place else ""
        problem = error.problem or error.context or "cannot be read"
        words = next((ours for theirs, ours in _WORDS.items() if problem.startswith(theirs)), problem)
        raise ValueError(where + words) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dump(data: Any) -> str:
    """Write YAML that `parse` reads back, keys in their order; what would steer a terminal is escaped."""
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if text == printable(text):
        return text
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever PyYAML would quote, and what only `parse` would take for something else."""


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.Node:
    is_short = not any(isinstance(item, list | dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_short)


_Dumper.add_representer(list, _represent_list)

for _tag, _pattern, _first in _PLAIN_SCALARS:
    _Dumper.add_implicit_resolver(_tag, re.compile(rf"(?:{_pattern})\Z"), _first)
