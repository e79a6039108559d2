"""Tracing itself: off it is nothing, on it reaches a collector, and what strangers send as a trace is checked."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.contextvars import get_contextvars

from engine import tracing
from engine.errors import ConfigurationError
from engine.settings import Settings

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def settings(endpoint: str | None) -> Settings:
    return Settings.load(
        database_url="postgresql://db/fairlane",
        redis_url="redis://redis:6379/0",
        secret_key="s" * 40,
        master_keys=f"k1:{'a' * 43}=",
        otel_endpoint=endpoint,
    )


@pytest.fixture
def memory() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.record(SimpleSpanProcessor(exporter))
    yield exporter
    tracing.stop()


def test_without_an_endpoint_nothing_is_imported_recorded_or_sent() -> None:
    program = (
        "import sys\n"
        "from engine import tracing\n"
        "with tracing.continued({'traceparent': 'x'}), tracing.span('run', {'fairlane.run': 'r'}) as span:\n"
        "    span.note({'a': 1}); span.rename('b'); span.fail('c')\n"
        "    assert tracing.headers() == {}\n"
        "assert tracing.span('run', {}) is tracing.span('step', {})\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_endpoint_without_the_extra_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"OTEL_ENDPOINT is set.*pip install 'fairlane\[otel\]'"):
        tracing.configure(settings("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    "url", ["collector:4318", "ftp://collector", "http://user:word@collector", "http://c/?a=b", ""]
)
def test_an_endpoint_that_is_no_base_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FAIRLANE_OTEL_ENDPOINT: want the base URL of a collector"):
        settings(url)


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Something that takes what is posted: its base URL, and what has come as path and body."""
    taken: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", taken
    server.shutdown()
    server.server_close()


def test_spans_reach_a_collector_by_otlp_at_the_latest_when_the_process_ends() -> None:
    with collector() as (url, taken):
        for given in (f"{url}/", f"{url}/v1/traces"):
            tracing.configure(settings(given))
            with tracing.span("run", {"fairlane.run": "run_1"}, kind="consumer"):
                pass
            tracing.stop()
    assert [path for path, _ in taken] == ["/v1/traces"] * 2
    (told,) = ExportTraceServiceRequest.FromString(taken[0][1]).resource_spans
    assert {a.key: a.value.string_value for a in told.resource.attributes}["service.name"] == "fairlane"
    (span,) = told.scope_spans[0].spans
    assert (span.name, span.attributes[0].value.string_value) == ("run", "run_1")


def test_a_trace_goes_on_where_its_header_arrives_and_carries_nothing_else(memory: InMemorySpanExporter) -> None:
    given = {"traceparent": PARENT, "tracestate": "a=of-a-stranger", "baggage": "b=2"}
    with tracing.continued(given), tracing.span("enqueue", {}, kind="producer"):
        carried = tracing.headers()
    assert carried.keys() == {"traceparent"}
    assert carried["traceparent"].startswith(PARENT[:36])
    with tracing.continued(carried), tracing.span("run", {}):
        pass
    enqueue, run = memory.get_finished_spans()
    context = enqueue.get_span_context()
    assert run.parent is not None
    assert context is not None
    assert run.parent.span_id == context.span_id


@pytest.mark.parametrize(
    "given", [None, {}, {"traceparent": "00-zz"}, {"traceparent": None}, {"traceparent": "x" * 9999}]
)
def test_what_is_no_trace_begins_a_new_one(memory: InMemorySpanExporter, given: dict[str, Any] | None) -> None:
    with tracing.continued(given), tracing.span("run", {}):
        pass
    (span,) = memory.get_finished_spans()
    assert span.parent is None


def test_an_exception_leaves_its_class_and_not_its_words(memory: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match="secret"), tracing.span("step", {}):
        raise ValueError("a secret value")
    (span,) = memory.get_finished_spans()
    assert dict(span.attributes or {}) == {"error.type": "ValueError"}
    assert not span.events
    assert "secret" not in span.to_json()


def test_log_lines_name_the_trace_while_it_is_recorded(memory: InMemorySpanExporter) -> None:
    with tracing.continued({"traceparent": PARENT}), tracing.span("run", {}):
        assert get_contextvars()["trace"] == PARENT[3:35]
    assert "trace" not in get_contextvars()
