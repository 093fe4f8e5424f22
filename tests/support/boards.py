"""What the boards of Grafana and the rules of Prometheus ask for, as they are committed."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULE_FILES = sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml"))
RULE_TESTS = sorted((ROOT / "deploy" / "prometheus" / "tests").glob("*.yml"))
DOCS = ROOT / "docs" / "observability.md"
_WORDS = {"and", "or", "unless", "bool", "offset", "on", "ignoring", "group_left", "group_right", "by", "without"}


@dataclass(frozen=True)
class Metric:
    """A metric as docs/observability.md lists it."""

    name: str
    type: str
    labels: frozenset[str]

    @property
    def series(self) -> set[str]:
        """The names that it has in a query."""
        if self.type == "histogram":
            return {f"{self.name}_{part}" for part in ("bucket", "sum", "count")}
        return {self.name}


@dataclass(frozen=True)
class Query:
    """A query of a board."""

    board: str
    panel: str
    expr: str
    letter: str = ""

    def __str__(self) -> str:
        return f"{self.board}: {self.panel} {self.letter}".strip()

    def with_values(self, job_id: str = ".*") -> str:
        """The query as Grafana would send it: all nodes and ranks chosen, and a job."""
        values = {"$__rate_interval": "20s", "$__range": "1h", "$node": ".*", "$rank": ".*", "$job": job_id}
        expr = self.expr
        for variable, value in values.items():
            expr = expr.replace(variable, value)
        assert "$" not in expr, expr
        return expr


def metrics() -> dict[str, Metric]:
    """All metrics of the server's page by name: the tables in docs/observability.md are the one list of them."""
    rows = re.findall(r"^\| `(\w+)` \| (gauge|counter|histogram) \| *([\w, ]*?) *\|", DOCS.read_text(), re.MULTILINE)
    found = [Metric(name, kind, frozenset(re.findall(r"\w+", labels))) for name, kind, labels in rows]
    assert len(found) == len({metric.name for metric in found}), "a metric is listed twice"
    return {metric.name: metric for metric in found}


def rules() -> list[dict[str, Any]]:
    """All rules: with `record` or `alert`, and `expr`."""
    return [
        rule for path in RULE_FILES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
    ]


def board(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def panels(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels of a board, those in rows among them, without the rows."""
    for panel in content["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries() -> list[Query]:
    """Every query of every panel, and of every mark on the boards."""
    found = []
    for path in DASHBOARDS:
        content = board(path)
        name = path.stem
        for panel in panels(content):
            found += [Query(name, panel["title"], target["expr"], target["refId"]) for target in panel["targets"]]
        for mark in content.get("annotations", {}).get("list", []):
            found.append(Query(name, f"mark {mark['name']}", mark["expr"]))
    return found


def variables() -> list[Query]:
    """What the boards ask for the values of their variables, as PromQL."""
    found = []
    for path in DASHBOARDS:
        for variable in board(path)["templating"]["list"]:
            if variable["type"] == "query":
                asked = variable["query"]["query"]
                inner = re.fullmatch(r"(?:query_result\((.*)\)|label_values\((.*), \w+\))", asked)
                assert inner, asked
                found.append(Query(path.stem, f"variable {variable['name']}", inner[1] or inner[2]))
    return found


def names_in(expr: str) -> set[str]:
    """The metrics that a query asks for."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\b(by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)", " ", bare)
    found = re.findall(r"(?<![\w.:])([a-zA-Z_:][\w:]*)(?!\s*\()\b", bare)
    return {name for name in found if name not in _WORDS and name not in {"Inf", "NaN"}}
