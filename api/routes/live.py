"""Watching a run: its status, steps and log as server-sent events, until it has ended.

Each event has an id that is a cursor. A browser that lost the connection sends the last one back by itself
(``Last-Event-ID``), and goes on behind it. A stream ends after a while, so that who may no longer read is asked again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pydantic_core
from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.auth import Call, may
from api.openapi import refusals
from api.routes.runs import existing
from api.wire import Route
from engine.db import Row
from engine.errors import Fault, InvalidInput
from engine.live import Cursor, Event, Live
from engine.permissions import Permission

router = APIRouter(route_class=Route, prefix="/api/runs", tags=["runs"])

LONGEST = 30.0
"""Seconds after which a stream ends with its next event or comment: so long a key that was revoked may still read. The
browser comes back by itself."""
EVENT_STREAM = "text/event-stream"
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Events `status`, `step` and `log`.",
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/{run_id}/events",
    response_class=StreamingResponse,
    responses=_STREAM | refusals("not_found", "too_many_requests"),
)
async def events(
    run_id: str,
    request: Request,
    call: Annotated[Call, may(Permission.RUNS_READ)],
    last_event_id: Annotated[
        str | None, Header(alias="Last-Event-ID", description="the `id` of the last event that arrived")
    ] = None,
) -> Response:
    """Watch a run until it has ended. Whoever comes back with Last-Event-ID misses nothing and gets nothing twice;
    204 says that there is nothing more to come."""
    live: Live = request.app.state.live
    cursor = _cursor(last_event_id)
    await run_in_threadpool(_find, call, run_id)
    if cursor.is_at_the_end:
        return Response(status_code=204)
    live.check_room(call.principal.tenant_id)
    stream = _written(live.follow(call.principal.tenant_id, run_id, cursor))
    return StreamingResponse(stream, media_type=EVENT_STREAM, headers={"X-Accel-Buffering": "no"})


def _cursor(last_event_id: str | None) -> Cursor:
    if not last_event_id:
        return Cursor()
    try:
        return Cursor.parse(last_event_id)
    except ValueError:
        raise InvalidInput([Fault("/Last-Event-ID", "not the id of an event of this stream")]) from None


def _find(call: Call, run_id: str) -> Row:
    with call.transaction() as session:
        return existing(session, run_id)


async def _written(found: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    until = asyncio.get_running_loop().time() + LONGEST
    yield b"retry: 1000\n\n"
    async for event in found:
        yield b": nothing new\n\n" if event is None else _event(event)
        if asyncio.get_running_loop().time() > until:
            return


def _event(event: Event) -> bytes:
    data = pydantic_core.to_json(event.data)
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(event.cursor).encode(), event.kind.encode(), data)
