"""The application: `create_app` puts routes, errors and limits together over the engine's services.

``uvicorn api.app:create_app --factory`` serves it; the services are then those of the process, made from the
environment. Endpoints are plain functions in a thread pool that is as large as the connection pool, so that no thread
waits for a connection that a waiting thread holds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api import problems
from api.auth import require_permissions
from api.edge import Edge
from api.openapi import Application
from api.routes import (
    audit,
    auth,
    billing,
    catalog,
    credentials,
    health,
    keys,
    live,
    members,
    notices,
    quotas,
    resume,
    runs,
    tenants,
    usage,
    webhooks,
    workflows,
)
from api.services import Services
from api.throttle import Throttle
from engine import logs, tracing
from engine.live import Live
from engine.tallies import Flusher

ROUTERS = (
    webhooks,
    auth,
    tenants,
    members,
    keys,
    audit,
    credentials,
    workflows,
    runs,
    resume,
    live,
    catalog,
    billing,
    usage,
    notices,
    quotas,
    health,
)
"""Webhooks first: routes are tried in this order, and those are the many."""

CORS: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "PUT", "PATCH", "DELETE"],
    "allow_headers": ["Authorization", "Content-Type", "Idempotency-Key", "X-Tenant-ID", "X-Request-ID"],
    "expose_headers": ["X-Request-ID", "Retry-After"],
    "max_age": 600,
}
"""For the origins that the operator names; browsers keep all others out. No cookies: tokens travel in a header."""

DESCRIPTION = """
Send `Authorization: Bearer` with a login token (`POST /api/auth/login`) or an API key (`fl_...`).
Errors are RFC 9457 problem documents with a stable `code`. Lists come in pages: `items` and `next_cursor`.
"""


def create_app(services: Services | None = None) -> FastAPI:
    """The application over `services`, or over those of this process."""
    if services is None:
        import tasks

        services = tasks.services()
        logs.configure(services.settings)
        tasks.refuse_leaky_isolation()
    settings = services.settings
    app = Application(
        title="Fairlane",
        version=_version(),
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url="/api/docs",
        swagger_ui_oauth2_redirect_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it would tell addresses, which may be secret
    )
    app.state.services = services
    app.state.live = Live(services.database)
    app.state.throttle = Throttle(settings.redis_url)
    app.state.hashers = CapacityLimiter(auth.HASHERS)
    app.state.dry_runs = CapacityLimiter(workflows.DRY_RUNS)
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **CORS)
    app.add_middleware(Edge, webhook_limit=settings.webhook_max_bytes, https=settings.public_url.startswith("https://"))
    problems.install(app)
    for module in ROUTERS:
        app.include_router(module.router)
    require_permissions(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    services: Services = app.state.services
    to_thread.current_default_thread_limiter().total_tokens = services.settings.database_pool_size * 2
    yield
    app.state.live.close()
    # Here, for uvicorn ends the process by the signal that it got, and nothing that is registered for the end runs.
    Flusher(services.database).flush()
    tracing.stop()


def _version() -> str:
    try:
        return version("fairlane")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
