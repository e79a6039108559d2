"""From a request to the last step of the run that it started: one trace, one request id, no payload in any of it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from engine import tracing
from tests.api_server import running_api, services_for, settings_for
from tests.engine_parts import parts_for
from tests.scripted import call, scripted
from tests.traced_engine import CANARY, REQUEST_ID, TRACE, UNKNOWN_RUN

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(module_database_url: str, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `tests.traced_engine` recorded, and its log lines."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FAIRLANE_", "OTEL_"))}
    environment = {
        **clean,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "FAIRLANE_DATA_DIR": str(tmp_path_factory.mktemp("home")),
        "FAIRLANE_DATABASE_URL": module_database_url,
        "FAIRLANE_REDIS_URL": redis_server.url,
        "FAIRLANE_SECRET_KEY": "s" * 40,
        "FAIRLANE_MASTER_KEYS": "k:" + base64.b64encode(b"1" * 32).decode(),
        "FAIRLANE_ALLOWED_NETWORKS": "127.0.0.0/8",
        "FAIRLANE_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "tests.traced_engine"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return {**json.loads(done.stdout), "lines": lines}


def test_a_webhook_its_message_its_run_and_every_step_are_one_trace_with_the_right_parents(
    told: dict[str, Any],
) -> None:
    spans = [span for span in told["spans"] if span["trace"] == TRACE]
    (request,) = [span for span in spans if span["kind"] == "SERVER"]
    (enqueue,) = [span for span in spans if span["name"] == "enqueue"]
    (run,) = [span for span in spans if span["name"] == "run"]
    steps = {span["attributes"]["fairlane.step"]: span for span in spans if span["name"] == "step"}
    assert request["name"] == "POST /api/webhooks/{workflow_id}"
    assert request["parent"] == "b7ad6b7169203331"
    assert (enqueue["parent"], enqueue["kind"]) == (request["id"], "PRODUCER")
    assert (run["parent"], run["kind"]) == (enqueue["id"], "CONSUMER")
    assert {span["parent"] for span in steps.values()} == {run["id"]}
    assert steps.keys() == {"left", "right", "broken"}  # the first two in threads of their own
    assert len(spans) == 6


def test_spans_say_what_it_is_about_and_how_it_ended(told: dict[str, Any]) -> None:
    spans = [span for span in told["spans"] if span["trace"] == TRACE]
    about = {f"fairlane.{name}": told[name] for name in ("tenant", "workflow", "run")}
    inside = [span for span in spans if span["name"] in ("enqueue", "run", "step")]
    assert all(about.items() <= span["attributes"].items() for span in inside)
    by_step = {span["attributes"].get("fairlane.step"): span for span in inside if span["name"] == "step"}
    assert by_step["left"]["status"] == "UNSET"
    assert (by_step["broken"]["status"], by_step["broken"]["attributes"]["fairlane.status"]) == ("ERROR", "failed")
    (run,) = [span for span in inside if span["name"] == "run"]
    assert (run["status"], run["attributes"]["fairlane.status"]) == ("ERROR", told["state"]) == ("ERROR", "failed")


def test_no_payload_address_or_message_of_an_error_is_in_a_span(told: dict[str, Any]) -> None:
    assert CANARY not in json.dumps(told["spans"])
    assert not any(span["events"] for span in told["spans"])


def test_requests_of_nobodys_trace_begin_their_own(told: dict[str, Any]) -> None:
    roots = [span for span in told["spans"] if span["parent"] is None]
    assert {"POST /api/auth/register", "POST /api/workflows"} <= {span["name"] for span in roots}
    assert len({span["trace"] for span in roots}) == len(roots)


def test_what_celery_says_about_a_task_that_broke_names_its_run_and_the_request(told: dict[str, Any]) -> None:
    (line,) = [line for line in told["lines"] if "raised unexpected" in line["event"]]
    assert (line["run"], line["request_id"], line["level"]) == (UNKNOWN_RUN, REQUEST_ID, "error")


def test_an_api_that_is_stopped_has_sent_its_last_spans(database_url: str, redis_url: str) -> None:
    memory = InMemorySpanExporter()
    tracing.record(BatchSpanProcessor(memory, schedule_delay_millis=600_000))
    with running_api(services_for(settings_for(database_url, redis_url))) as api:
        api.client().get("/healthz")
        api.client().get("/nowhere")
    (span,) = memory.get_finished_spans()  # probes are left out
    assert span.name == "request"
    assert (
        dict(span.attributes or {}).items() >= {"http.request.method": "GET", "http.response.status_code": 404}.items()
    )


def test_log_lines_of_a_step_name_tenant_workflow_run_and_step_in_whatever_thread_it_is_done(database_url: str) -> None:
    script = scripted()
    script.body = lambda context, _parameters: structlog.get_logger().info("in_step", is_in=context.step_id)
    with parts_for(database_url, script=script.action) as parts, structlog.contextvars.bound_contextvars(tenant="acme"):
        for apart in (False, True):
            script.action.honours_deadline = not apart
            run_id = parts.start(parts.workflow(call("a", needs=[]), call("b", needs=[]), workflow_id=f"wf_{apart}"))
            with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
                parts.executor.run(parts.tenant, run_id)
            about = {"tenant": "acme", "workflow": f"wf_{apart}"}
            said = [line for line in lines if line["event"] == "in_step"]
            assert {line["step"] for line in said} == {line["is_in"] for line in said} == {"a", "b"}
            assert all(about.items() <= line.items() for line in said)
        assert "step" not in structlog.contextvars.get_contextvars()
