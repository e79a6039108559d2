"""docs/metrics.md names every series with its labels, and every outcome of a webhook."""

from __future__ import annotations

import re
from pathlib import Path

from engine.metrics import COUNTED, SWEEPER_REPAIRS, TENANT, WEBHOOK_OUTCOMES

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
ROWS = {
    name: (set(re.findall(r"`(\w+)`", labels)), kind, text)
    for name, labels, kind, text in re.findall(
        r"^\| `(\w+)` \|(.*?)\| (counter|gauge|histogram) \| (.*) \|$", PAGE, re.MULTILINE
    )
}


def test_it_names_every_counted_series_with_its_labels() -> None:
    for series in COUNTED:
        labels, kind, _ = ROWS[series.name if series.buckets else f"{series.name}_total"]
        assert labels == {*series.labels, *([TENANT] if series.by_tenant else [])}, series.name
        assert kind == ("histogram" if series.buckets else "counter")


def test_what_is_not_counted_is_a_gauge() -> None:
    counted = {series.name if series.buckets else f"{series.name}_total" for series in COUNTED}
    assert {name for name, (_, kind, _) in ROWS.items() if kind == "gauge"} == ROWS.keys() - counted
    assert ROWS.keys() - counted == {"queue_depth", "runs_in_flight", "quota_used_ratio", "schedule_lag_seconds"}


def test_it_names_every_outcome_and_every_repair() -> None:
    assert set(re.findall(r"`(\w+)`", ROWS["webhooks_total"][2])) >= set(WEBHOOK_OUTCOMES)
    assert set(re.findall(r"`(\w+)`", ROWS["sweeper_repairs_total"][2])) == {kind for (kind,) in SWEEPER_REPAIRS.always}
