"""The gauges of the whole installation, read from Redis and Postgres when somebody scrapes.

Every API process shows the same, so scrape one of them or take `max`, never `sum`. The tenants with most in line and in
hand have a label of their own, as many as `metrics_tenant_limit` says; the rest is ``other``. What a server that does
not answer would have told is left out, and the rest is shown.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from api.services import Services
from engine.errors import Unavailable
from engine.repository.lag import schedule_lag

OTHER = "other"

log = structlog.get_logger(__name__)


class Gauges(Collector):
    """`queue_depth` and `runs_in_flight` out of the lanes, `schedule_lag_seconds` out of the triggers."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[GaugeMetricFamily]:
        try:
            yield from self._lanes()
        except RedisError as error:
            log.warning("gauges_left_out", of="lanes", reason=str(error))
        try:
            yield self._lag()
        except Unavailable as error:
            log.warning("gauges_left_out", of="schedules", reason=error.detail)

    def _lanes(self) -> list[GaugeMetricFamily]:
        lanes = [(lane.backlog, lane.in_flight, lane.tenant) for lane in self._services.lanes.all()]
        lanes.sort(key=lambda lane: (-lane[0] - lane[1], lane[2]))
        limit = self._services.settings.metrics_tenant_limit
        rest = lanes[limit:]
        shown = [*lanes[:limit], (sum(lane[0] for lane in rest), sum(lane[1] for lane in rest), OTHER)]
        depth = GaugeMetricFamily("fairlane_queue_depth", "Runs in line for a worker.", labels=["tenant"])
        in_flight = GaugeMetricFamily("fairlane_runs_in_flight", "Runs in the hands of workers.", labels=["tenant"])
        for waiting, held, tenant in shown:
            depth.add_metric([tenant], waiting)
            in_flight.add_metric([tenant], held)
        return [depth, in_flight]

    def _lag(self) -> GaugeMetricFamily:
        with self._services.database.system() as session:
            lag = schedule_lag(session)
        return GaugeMetricFamily(
            "fairlane_schedule_lag_seconds", "How late the latest schedule or poll is; 0 when none is.", value=lag
        )
