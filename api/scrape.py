"""What `/metrics` shows: the same in every API process, however many there are, so that one target is enough.

Counters and histograms are totals of the whole installation, read from Postgres (`engine.repository.metrics`); gauges
are looked up in Redis and Postgres when somebody scrapes. No more than `metrics_tenant_limit` tenants have a label of
their own in each series; the rest is ``other``. What a server that does not answer would have told is left out, and the
rest is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from api.services import Services
from engine import metrics
from engine.db import Row
from engine.errors import Unavailable
from engine.metrics import OTHER, PREFIX, TENANT, Series
from engine.repository import metrics as stored
from engine.repository.lag import schedule_lag
from engine.tallies import Flusher

Depths = Sequence[tuple[str, int, int]]
"""Of each lane: tenant, how many wait, how many run."""

Shown = TypeVar("Shown")

log = structlog.get_logger(__name__)


class Scrape(Collector):
    """One look at everything."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        depths = _or_none("lanes", lambda: list(self._services.lanes.depths()))
        if depths is not None:
            yield from _lane_gauges(depths, limit=self._services.settings.metrics_tenant_limit)
        yield from _or_none("totals", lambda: self._stored(depths or ())) or ()

    def _stored(self, depths: Depths) -> list[Metric]:
        """With what this process has tallied itself: what somebody has just done is shown."""
        Flusher(self._services.database).flush()
        with self._services.database.system() as session:
            lag = schedule_lag(session)
            ratios = stored.quota_ratios(session, [lane for lane in depths if lane[1] or lane[2]])
            totals = stored.totals(session)
        late = GaugeMetricFamily(
            f"{PREFIX}schedule_lag_seconds", "How late the latest schedule or poll is; 0 when none is.", value=lag
        )
        return [late, _quota_gauge(ratios), *_counted(totals)]


def _or_none(of: str, read: Callable[[], Shown]) -> Shown | None:
    try:
        return read()
    except RedisError as error:
        log.warning("metrics_left_out", of=of, reason=str(error))
    except Unavailable as error:
        log.warning("metrics_left_out", of=of, reason=error.detail)
    return None


def _lane_gauges(depths: Depths, *, limit: int) -> Iterator[Metric]:
    """Those with most in line and in hand have a label."""
    lanes = sorted(depths, key=lambda lane: (-lane[1] - lane[2], lane[0]))
    rest = lanes[limit:]
    shown = [*lanes[:limit], (OTHER, sum(lane[1] for lane in rest), sum(lane[2] for lane in rest))]
    depth = GaugeMetricFamily(f"{PREFIX}queue_depth", "Runs in line for a worker.", labels=[TENANT])
    in_flight = GaugeMetricFamily(f"{PREFIX}runs_in_flight", "Runs in the hands of workers.", labels=[TENANT])
    for tenant, waiting, running in shown:
        depth.add_metric([tenant], waiting)
        in_flight.add_metric([tenant], running)
    yield from (depth, in_flight)


def _quota_gauge(rows: Iterable[Row]) -> Metric:
    gauge = GaugeMetricFamily(
        f"{PREFIX}quota_used_ratio",
        "What is used of each limit, 1 being all of it; of `other` the largest.",
        labels=[TENANT, "quota"],
    )
    for row in rows:
        gauge.add_metric([row[TENANT] or OTHER, row["quota"]], row["ratio"])
    return gauge


def _counted(rows: Iterable[Row]) -> Iterator[Metric]:
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for row in rows:
        labels = (row[TENANT] or OTHER, *row["labels"])
        values.setdefault(row["series"], {})[labels] = row["value"]
    for series in metrics.COUNTED:
        found = values.get(series.name, {})
        yield _histogram(series, found, values) if series.buckets else _counter(series, found)


def _counter(series: Series, found: dict[tuple[str, ...], float]) -> Metric:
    labels = [*([TENANT] if series.by_tenant else []), *series.labels]
    family = CounterMetricFamily(f"{PREFIX}{series.name}", series.help, labels=labels)
    for (tenant, *rest), value in sorted({**{(OTHER, *zero): 0.0 for zero in series.always}, **found}.items()):
        family.add_metric([*([tenant] if series.by_tenant else []), *rest], value)
    return family


def _histogram(
    series: Series, found: dict[tuple[str, ...], float], values: dict[str, dict[tuple[str, ...], float]]
) -> Metric:
    """The stored counts are of one bucket each; Prometheus wants those up to it."""
    sums = {tenant: value for (tenant,), value in values.get(f"{series.name}_sum", {}).items()}
    family = HistogramMetricFamily(f"{PREFIX}{series.name}", series.help, labels=[TENANT] if series.by_tenant else [])
    bounds = [f"{bound:g}" for bound in series.buckets]
    names = [*(repr(float(bound)) for bound in series.buckets), "+Inf"]  # 5.0, as Prometheus itself writes it
    for tenant in sorted({OTHER, *(labels[0] for labels in found)}):
        counts = accumulate(found.get((tenant, bound), 0) for bound in (*bounds, ""))
        buckets = list(zip(names, counts, strict=True))
        family.add_metric([tenant] if series.by_tenant else [], buckets, sum_value=sums.get(tenant, 0))
    return family
