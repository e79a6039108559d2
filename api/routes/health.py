"""Whether this process lives, whether it can do its work, and its metrics."""

from __future__ import annotations

import hmac
from typing import Any

import prometheus_client
import sqlalchemy
from fastapi import APIRouter, Request, Response
from redis.exceptions import RedisError
from sqlalchemy.pool import NullPool

import migrations
from api.problems import Problem
from api.scrape import Scrape
from api.services import Services
from api.wire import Route
from engine.errors import Unauthenticated

router = APIRouter(route_class=Route, tags=["operation"])

PROBE_SECONDS = 2


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Say that the process answers. That says nothing about what it depends on."""
    return {"status": "ok"}


@router.get("/readyz", response_model=None)
def readyz(request: Request) -> Any:
    """Say whether Postgres, its schema and Redis are as they must be. 503 has a sentence for each that is not."""
    services: Services = request.app.state.services
    reasons = [reason for reason in (_postgres(services), _redis(services)) if reason]
    if not reasons:
        return {"status": "ready"}
    return Problem(503, "not_ready", " ".join(reasons), headers={"Retry-After": "2"}, reasons=reasons)


@router.get("/metrics", response_class=Response)
def metrics(request: Request) -> Response:
    """Show the Prometheus series of the whole installation; each API process shows the same.

    An installation may want a token of its own for this (``FAIRLANE_METRICS_TOKEN``).
    """
    _check_token(request)
    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    registry.register(Scrape(request.app.state.services))
    return Response(prometheus_client.generate_latest(registry), media_type=prometheus_client.CONTENT_TYPE_LATEST)


def _check_token(request: Request) -> None:
    wanted = request.app.state.services.settings.metrics_token
    given = request.headers.get("Authorization", "").encode()
    if wanted is not None and not hmac.compare_digest(given, f"Bearer {wanted.get_secret_value()}".encode()):
        raise Unauthenticated("This installation shows its metrics to whoever sends FAIRLANE_METRICS_TOKEN only.")


def _postgres(services: Services) -> str | None:
    """On a connection of its own: a pool that is used up by work is no reason to call the process unfit."""
    engine = sqlalchemy.create_engine(
        services.settings.database_url, poolclass=NullPool, connect_args={"connect_timeout": PROBE_SECONDS}
    )
    try:
        with engine.connect() as connection:
            revision = migrations.current(connection)
    except sqlalchemy.exc.DBAPIError as error:
        return f"Postgres does not answer ({str(error.orig).strip().partition(chr(10))[0]})."
    if revision != migrations.head():
        return f"The schema is at {revision or 'nothing'}, this code wants {migrations.head()}; run `fairlane migrate`."
    return None


def _redis(services: Services) -> str | None:
    try:
        services.lanes.epoch()
    except RedisError as error:
        return f"Redis does not answer ({error}); runs are stored and wait."
    return None
