"""A program: API and worker in one process, a webhook that is traced, and what was recorded as JSON on stdout.

It is a process of its own because the Celery app is one for each process and reads the environment. ``{"spans": [...],
"run": ..., "broken": ...}``; log lines go to stderr as JSON. See `tests.integration.test_tracing`.
"""

# Celery has no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import httpx
import uvicorn
from celery.contrib.testing.worker import start_worker
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import bound_contextvars

from embedded.ports import free_port
from engine import tracing
from engine.ports import RunMessage
from tests.installation import Tenant, wait_for

CANARY = "canary-of-a-payload"
TRACE = "0af7651916cd43dd8448eb211c80319c"
REQUEST_ID = "request-of-the-test"
STEPS: list[dict[str, Any]] = [
    {"id": "left", "action": "debug.echo", "with": {"text": "{{ trigger.body.text }}"}, "needs": []},
    {"id": "right", "action": "debug.echo", "with": {"text": "{{ trigger.body.text }}"}, "needs": []},
    {
        "id": "broken",
        "action": "http.request",
        "with": {"url": "http://127.0.0.1:1/{{ trigger.body.text }}"},
        "needs": ["left", "right"],
    },
]
UNKNOWN_RUN = "run_of_nobody"


def main() -> None:
    memory = InMemorySpanExporter()
    tracing.record(SimpleSpanProcessor(memory))
    import tasks
    from api.app import create_app

    config = uvicorn.Config(create_app(), host="127.0.0.1", port=free_port(), log_level="error")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    wait_for(lambda: server.started, "the API")
    with (
        start_worker(
            tasks.app, pool="threads", concurrency=2, queues=["runs"], perform_ping_check=False, loglevel="INFO"
        ),
        httpx.Client(base_url=f"http://127.0.0.1:{config.port}", timeout=30) as client,
    ):
        found = _do_all(client, tasks)
    json.dump({**found, "spans": [_told(span) for span in memory.get_finished_spans()]}, sys.stdout)


def _do_all(client: httpx.Client, tasks: Any) -> dict[str, Any]:
    person = {"email": "ada@example.com", "password": "correct horse battery"}
    registered = client.post("/api/auth/register", json=person).json()
    client.headers["Authorization"] = f"Bearer {registered['token']}"
    tenant = Tenant(client, registered["tenant"]["id"])
    workflow = tenant.workflow(*STEPS)
    traced = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "X-Request-ID": REQUEST_ID}
    run = tenant.hook(f"{workflow}?token={CANARY}", {"text": CANARY}, **traced).json()["run_id"]
    state = tenant.finished(run)["status"]
    with bound_contextvars(request_id=REQUEST_ID):  # a message that breaks its task, as no other does
        tasks.services().publisher.publish([RunMessage(UNKNOWN_RUN, "", workflow)])
    wait_for(lambda: not tasks.services().lanes.holds([UNKNOWN_RUN]), "the message without a tenant to be used up")
    return {"run": run, "state": state, "tenant": tenant.id, "workflow": workflow}


def _told(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None
    return {
        "name": span.name,
        "trace": f"{context.trace_id:032x}",
        "id": f"{context.span_id:016x}",
        "parent": None if span.parent is None else f"{span.parent.span_id:016x}",
        "kind": span.kind.name,
        "status": span.status.status_code.name,
        "attributes": dict(span.attributes or {}),
        "events": [event.name for event in span.events],
    }


if __name__ == "__main__":
    main()
