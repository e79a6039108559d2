"""Where webhooks come in: a request becomes a run that is stored before the answer.

Nobody logs in here; a trigger with a secret takes only what is signed with it. The body is read once, as it came,
because signatures are made over its bytes.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from api.openapi import TAKES_ANYTHING, refusals
from api.schemas_runs import Triggered
from api.services import Services
from api.wire import Route
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
            "quota_executions",
            "quota_queue",
        ),
    },
    openapi_extra=TAKES_ANYTHING,
)
async def receive(workflow_id: str, request: Request) -> Any:
    """Start a run of a webhook workflow. The same `webhook-id` again is the same run."""
    services: Services = request.app.state.services
    delivery = Delivery(
        workflow_id=workflow_id,
        body=await request.body(),
        headers=request.headers.items(),
        query=request.query_params.multi_items(),
    )
    started = await run_in_threadpool(services.receiver.receive, delivery)
    message = "This webhook-id came before; here is its run." if started.existing else "The workflow was triggered."
    answer = {
        "status": "triggered",
        "message": message,
        "run_id": started.run["id"],
        "idempotent": started.existing,
    }
    return JSONResponse(answer, status_code=202)
