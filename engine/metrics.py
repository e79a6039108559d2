"""Every Prometheus series: its name, its labels and what it means."""

from __future__ import annotations

from prometheus_client import Counter

SWEEPER_REPAIRS = Counter(
    "fairlane_sweeper_repairs_total", "What the sweeper repaired, by kind: woken, unpublished, silent.", ["kind"]
)

HANDED_BACK = Counter(
    "fairlane_handed_back_total",
    "Messages that a worker put back in line, by reason: unavailable, newer (a newer Fairlane wrote what it names).",
    ["reason"],
)

QUOTA_DRIFT = Counter(
    "fairlane_quota_drift_total", "Executions by which counters of admitted runs differed from the ledger, when mended."
)
