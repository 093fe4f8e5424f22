"""What Prometheus' own tool says of the configuration, the rules, and the cases of the alerts."""

from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from tests.support.boards import RULE_FILES, RULE_TESTS, rules
from tests.support.prometheus import CONFIG, promtool

ALERTS = sorted({rule["alert"] for rule in rules() if "alert" in rule})


def test_the_configuration_is_one() -> None:
    done = promtool("check", "config", "--lint-fatal", CONFIG / "prometheus.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_are_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULE_TESTS, ids=[path.stem for path in RULE_TESTS])
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = defaultdict(set)
    for path in RULE_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                cases[case["alertname"]].add(bool(case["exp_alerts"]))
    assert dict(cases) == {alert: {True, False} for alert in ALERTS}


def test_an_alert_about_something_that_passes_waits_before_it_fires() -> None:
    # These look back over a time of their own, or are of something that does not pass.
    at_once = {"LockstepNonFiniteLoss", "LockstepGpuXid", "LockstepRestartLoop"}
    assert {rule["alert"] for rule in rules() if "alert" in rule and "for" not in rule} == at_once
