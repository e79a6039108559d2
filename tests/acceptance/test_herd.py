"""The short form of `bench.herd`: a whole installation, sixty schedules due in one second, and callers beside them."""

from __future__ import annotations

from pathlib import Path

from bench.herd import run
from bench.herd_ground import BEFORE, HERD, SAME, Plan


def test_a_herd_beside_callers_of_the_api_fires_once_each_and_everybody_is_answered(tmp_path: Path) -> None:
    plan = Plan(schedules=60, tenants=6, before=0.5, jitter=1)
    outcome = run(plan, tmp_path)
    assert outcome.exactly_once
    assert (len(outcome.all_lags), outcome.refused) == (60, 0)
    assert min(outcome.all_lags) >= 0
    assert all(outcome.answers[phase] for phase in (BEFORE, HERD, SAME))


def test_the_organizations_of_a_herd_are_uneven_and_each_has_a_schedule() -> None:
    for plan in (Plan(), Plan(schedules=60, tenants=6), Plan(schedules=6, tenants=3)):
        sizes = plan.sizes()
        assert (sum(sizes), len(sizes)) == (plan.schedules, plan.tenants)
        assert min(sizes) >= 1
