"""The boards of Grafana are fresh, and ask only for what there is."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tests.support.boards import (
    DASHBOARDS,
    DOCS,
    ROOT,
    RULE_FILES,
    board,
    metrics,
    names_in,
    panels,
    queries,
    rules,
    variables,
)

IDS = [path.stem for path in DASHBOARDS]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
EXPORTED = {name for metric in metrics().values() for name in metric.series}
OF_PROMETHEUS = {"up", "ALERTS"}


def test_the_boards_are_what_the_generator_writes() -> None:
    generator = ROOT / "deploy" / "grafana" / "generate.py"
    run = subprocess.run([sys.executable, generator, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("path", DASHBOARDS, ids=IDS)
def test_grafanas_model_of_a_board_reads_what_is_written(path: Path) -> None:
    content = board(path)
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(content)))
    assert again["panels"] == content["panels"]
    assert again["templating"] == content["templating"]


def test_names_of_metrics_are_found_in_a_query() -> None:
    expr = (
        'sum by (job_id) (rate(a_total{x="b_total"}[5m] offset 15m)) / on (node) group_left (c) (d:e:f > bool 0) or NaN'
    )
    assert names_in(expr) == {"a_total", "d:e:f"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=IDS)
def test_every_panel_says_what_a_bad_value_means(path: Path) -> None:
    for panel in panels(board(path)):
        assert len(panel.get("description", "").split()) >= 12, panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=IDS)
def test_every_panel_has_room_and_a_title_of_its_own(path: Path) -> None:
    all_panels = list(panels(board(path)))
    assert len({panel["title"] for panel in all_panels}) == len(all_panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in all_panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=IDS)
def test_every_panel_asks_the_data_source_that_was_chosen(path: Path) -> None:
    def sources(part: Any) -> list[Any]:
        if isinstance(part, dict):
            own = [part["datasource"]] if "datasource" in part else []
            return own + [source for value in part.values() for source in sources(value)]
        return [source for value in part for source in sources(value)] if isinstance(part, list) else []

    content = board(path)
    assert content["templating"]["list"][0]["type"] == "datasource"
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources(content))


def test_boards_and_rules_ask_only_for_metrics_that_are_listed() -> None:
    known = EXPORTED | RECORDED | OF_PROMETHEUS
    unknown = {str(query): left for query in [*queries(), *variables()] if (left := names_in(query.expr) - known)}
    unknown |= {
        rule.get("record") or rule["alert"]: left for rule in rules() if (left := names_in(rule["expr"]) - known)
    }
    assert not unknown


def test_every_recorded_family_is_listed_and_used() -> None:
    listed = set(re.findall(r"^\| `(\w+:\w+:\w+)` \|", DOCS.read_text(), re.MULTILINE))
    assert listed == RECORDED
    used = {name for query in queries() for name in names_in(query.expr)}
    used |= {name for rule in rules() for name in names_in(rule["expr"])}
    assert not RECORDED - used


def test_every_alert_is_explained() -> None:
    explained = re.findall(r"^\| `(Lockstep\w+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE)
    alerts = [(rule["alert"], rule["labels"]["severity"]) for rule in rules() if "alert" in rule]
    assert sorted(explained) == sorted(alerts)


def test_links_lead_to_boards_that_there_are() -> None:
    targets = {uid for path in DASHBOARDS for uid in re.findall(r'"/d/([\w-]+)/', path.read_text())}
    assert targets
    assert targets <= {board(path)["uid"] for path in DASHBOARDS}


def test_the_data_source_scrapes_as_often_as_the_boards_believe() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "lockstep.yml").read_text())["datasources"]
    prometheus = yaml.safe_load((RULE_FILES[0].parents[1] / "prometheus.yml").read_text())
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "lockstep.yml").read_text())["providers"]
    assert provider["type"] == "file"
