"""Where webhooks come in: a request becomes a run that is stored before the answer.

Nobody logs in here; a trigger with a secret takes only what is signed with it. The body is read once, as it came,
because signatures are made over its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.openapi import TAKES_ANYTHING, refusals
from api.schemas_runs import Triggered
from api.services import Services
from api.wire import Route
from engine.errors import FairlaneError
from engine.metrics import WEBHOOK_OUTCOMES, WEBHOOKS
from engine.runs import Started
from triggers import Delivery

router = APIRouter(route_class=Route, prefix="/api/webhooks", tags=["webhooks"])


@router.post(
    "/{workflow_id}",
    status_code=202,
    responses={
        202: {"model": Triggered},
        **refusals(
            "not_found",
            "not_a_webhook",
            "invalid_body",
            "bad_signature",
            "workflow_inactive",
            "too_large",
            "quota_payload",
            "quota_executions",
            "quota_queue",
        ),
    },
    openapi_extra=TAKES_ANYTHING,
)
async def receive(workflow_id: str, request: Request) -> Any:
    """Start a run of a webhook workflow. The same `webhook-id` again is the same run."""
    with _tallied() as outcome:
        started = await _receive(workflow_id, request)
        outcome.append("duplicate" if started.existing else "accepted")
    message = "This webhook-id came before; here is its run." if started.existing else "The workflow was triggered."
    answer = {
        "status": "triggered",
        "message": message,
        "run_id": started.run["id"],
        "idempotent": started.existing,
    }
    return JSONResponse(answer, status_code=202)


async def _receive(workflow_id: str, request: Request) -> Started:
    services: Services = request.app.state.services
    delivery = Delivery(
        workflow_id=workflow_id,
        body=await request.body(),
        headers=request.headers.items(),
        query=request.query_params.multi_items(),
    )
    return await run_in_threadpool(services.receiver.receive, delivery)


@contextmanager
def _tallied() -> Iterator[list[str]]:
    """Count what becomes of the request: what the block says, or the code of the error that it raises."""
    said: list[str] = []
    try:
        yield said
    except Exception as error:
        said.append(_blamed(error))
        raise
    finally:
        WEBHOOKS.inc(outcome=said[0] if said else "failed")


def _blamed(error: Exception) -> str:
    """``failed`` only for what is our own fault: operators are called for it."""
    if isinstance(error, FairlaneError):
        if error.error_code in WEBHOOK_OUTCOMES:
            return error.error_code
        return "bad_request" if error.status < HTTPStatus.INTERNAL_SERVER_ERROR else "failed"
    if isinstance(error, HTTPException):
        too_large = error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return "too_large" if too_large else "bad_request"
    return "bad_request" if isinstance(error, ClientDisconnect) else "failed"
