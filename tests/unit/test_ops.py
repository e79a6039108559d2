"""Rules and dashboards in `ops/`: whole, tested and about series that exist. With data: acceptance/test_prometheus."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
import yaml

from engine import metrics
from tests.ops_files import OPS, RULES_TEST, dashboards, measured, panels, queries, rules

GAUGES = {"queue_depth", "runs_in_flight", "schedule_lag_seconds", "quota_used_ratio"}
SUFFIXES = r"(?:_total|_bucket|_sum|_count)?"


def test_every_series_that_is_asked_for_exists() -> None:
    asked = [rule["expr"] for rule in rules()]
    asked += [query for board in dashboards().values() for query in queries(board, tenant="acme")]
    names = {name for query in asked for name in re.findall(r"(?<!:)\bfairlane_\w+(?!:)\b", query)}
    known = GAUGES | {series.name for series in metrics.COUNTED}
    assert {name for name in names if not any(re.fullmatch(f"fairlane_{k}{SUFFIXES}", name) for k in known)} == set()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert {name for query in asked for name in re.findall(r"\b[a-z]*:?fairlane\w*:\w+:?\w*", query)} <= recorded


@pytest.mark.parametrize("alert", [rule for rule in rules() if "alert" in rule], ids=lambda rule: str(rule["alert"]))
def test_every_alert_says_how_bad_it_is_and_what_to_do_and_is_tested_both_ways(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description"}
    cases = [
        bool(case.get("exp_alerts"))
        for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == alert["alert"]
    ]
    assert set(cases) == {True, False}
    assert f"`{alert['alert']}`" in (OPS.parent / "docs" / "operations.md").read_text()


def test_what_an_alert_measures_is_its_expression_without_thresholds() -> None:
    expression = 'sum(a{b!="c"}) > 0 and on () d >= 0.5 unless on (tenant) e == 1'
    assert measured(expression) == ['sum(a{b!="c"})  and on () d', "e"]


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_can_be_imported_anywhere(name: str) -> None:
    board = dashboards()[name]
    assert "id" not in board
    assert board["templating"]["list"][0]["type"] == "datasource"
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(numbers) == len(set(numbers))
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels(board):
        assert panel["title"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [source] * (
            len(panel["targets"]) + 1
        )
    for one, other in itertools.combinations([panel["gridPos"] for panel in board["panels"]], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
        assert one["x"] + one["w"] <= 24


def test_one_dashboard_is_for_the_operator_and_one_for_each_organization() -> None:
    boards = dashboards()
    assert boards.keys() == {"fairlane_operator", "fairlane_tenant_usage"}
    assert not any("$tenant" in str(panel) for panel in panels(boards["fairlane_operator"]))
    assert all("$tenant" in target["expr"] for p in panels(boards["fairlane_tenant_usage"]) for target in p["targets"])
