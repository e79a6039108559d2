"""Totals behind the Prometheus series, and which tenants have a label of their own there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from engine import metrics
from engine.db import Row, SystemSession, dump_json

FADES = timedelta(hours=6)
"""What a tenant used so long ago counts for its rank by 1/e."""
EVENTS = 200_000
"""Runs that began or ended, of which one roll-up takes so many at most."""


def fold(session: SystemSession, rolled_up: Row, *, tenants: int) -> int:
    """Add to the totals what was just rolled up of the ledger, and what has happened to runs; how many such events.

    In the transaction that moves the mark of the roll-up, with what `repository.usage.roll_up` returned of it. As many
    `tenants` as are given get a label of their own, those that used most lately; the others share `metrics.OTHER`.
    """
    batch = {"low": rolled_up["low"], "high": rolled_up["high"], "above": rolled_up["from_id"]}
    session.query("rank_tenants", **batch, fades=FADES.total_seconds())
    session.query("choose_tenants", limit=tenants)
    bounds = {"run_seconds": metrics.RUN_SECONDS.buckets, "queue_wait": metrics.QUEUE_WAIT.buckets}
    buckets = {name: [float(bound) for bound in series] for name, series in bounds.items()}
    (row,) = session.query("fold_metrics", **batch, **buckets, limit=EVENTS)
    return int(row["events"])


def add(session: SystemSession, tallies: Mapping[metrics.Key, float]) -> None:
    """Add what a process has tallied."""
    rows = [{"series": series, "labels": labels, "value": value} for (series, labels), value in tallies.items()]
    session.query("add_tallies", tallies=dump_json(rows))


def totals(session: SystemSession) -> list[Row]:
    """Rows ``{tenant, series, labels, value}`` of one moment: of tenants with a label, and of all others as None."""
    return session.query("metric_totals")


def quota_ratios(session: SystemSession, lanes: Sequence[tuple[str, int, int]]) -> list[Row]:
    """Rows ``{tenant, quota, ratio}``: what is used of each limit, 1 being all of it; of tenants without a label (None)
    the largest. `lanes` are (tenant, how many wait, how many run).
    """
    tenants, waiting, running = ("\x1f".join(str(lane[n]) for lane in lanes) for n in range(3))
    return session.query("quota_ratios", tenants=tenants, waiting=waiting, running=running)
