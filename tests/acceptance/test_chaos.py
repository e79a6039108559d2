"""The short form of `make chaos`: the same installation, load, faults and judgement, for a few seconds."""

from __future__ import annotations

from pathlib import Path

from bench.chaos import Plan, rage

FAULTS = ("kill -9 of a worker", "kill -9 of the API", "FLUSHALL", "a worker's COMMIT whose reply is dropped")


def test_nothing_is_lost_doubled_or_told_to_others_while_processes_die_and_redis_forgets(tmp_path: Path) -> None:
    plan = Plan(seconds=4, seed=7, lease=2, rate=6, tenants=2, faults=FAULTS, pause=(0.1, 0.5))
    outcome = rage(plan, tmp_path)
    kept = [verdict for verdict in outcome.verdicts if not verdict.invariant.startswith("I6")]  # a matter of speed
    assert {verdict.invariant: verdict.broken for verdict in kept if verdict.broken} == {}
    assert len(kept) == 7
    assert outcome.runs > 5
    assert all(outcome.times[name] for name in FAULTS)
