"""Every Prometheus series: its name, its labels and what it means."""

from __future__ import annotations

from prometheus_client import Counter

SWEEPER_REPAIRS = Counter(
    "fairlane_sweeper_repairs_total", "What the sweeper repaired, by kind: woken, unpublished, silent.", ["kind"]
)

QUOTA_DRIFT = Counter(
    "fairlane_quota_drift_total", "Executions by which counters of admitted runs differed from the ledger, when mended."
)
