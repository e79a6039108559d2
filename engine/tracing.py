"""Spans of requests, messages, runs and steps, for OpenTelemetry; nothing at all unless an endpoint is configured.

    request -> enqueue -> run -> step        poll -> enqueue -> run -> step

From the enqueue to the worker a trace travels in the header ``traceparent`` of the message, and nowhere else: what the
sweeper publishes, because it is due or was lost, begins a trace of its own. The attribute ``fairlane.run`` finds them
all.

Off, which is the default, `span` hands out one object that does nothing, and no library is imported. On, spans go to
the collector in batches from a thread of their own; a collector that does not answer costs spans, never work.
Attributes are ids, names, counts and codes: no payload, no message of an error, no address with its parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import Token
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import structlog

from engine.errors import ConfigurationError
from engine.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span as Recorded

HEADER = "traceparent"
"""Of W3C Trace Context, in requests and in messages."""
SECONDS = 3.0
"""For a collector to take a batch."""

Kind: TypeAlias = Literal["internal", "server", "producer", "consumer"]
About: TypeAlias = Mapping[str, str | int]


class Span(Protocol):
    """What is being traced."""

    def note(self, about: About) -> None:
        """Add attributes."""
        ...

    def rename(self, name: str) -> None:
        """By what only became known on the way."""
        ...

    def fail(self, code: str) -> None:
        """It ended badly; the code is no free text."""
        ...


class _Unrecorded:
    def note(self, about: About) -> None: ...

    def rename(self, name: str) -> None: ...

    def fail(self, code: str) -> None: ...


class _Recording:
    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def note(self, about: About) -> None:
        self._recorded.set_attributes(about)

    def rename(self, name: str) -> None:
        self._recorded.update_name(name)

    def fail(self, code: str) -> None:
        from opentelemetry.trace import StatusCode

        self._recorded.set_attribute("error.type", code)
        self._recorded.set_status(StatusCode.ERROR)


class _Recorder:
    """A provider of our own and not the global one, so that no library adds spans with what we leave out."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry import context, trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._context = context
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(resource=Resource.create({"service.name": "fairlane"}))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("fairlane")

    @contextlib.contextmanager
    def span(self, name: str, kind: Kind, about: About) -> Iterator[Span]:
        """An exception leaves its class behind, and not what it says: that may quote a payload."""
        with self._tracer.start_as_current_span(
            name,
            kind=self._trace.SpanKind[kind.upper()],
            attributes=about,
            record_exception=False,
            set_status_on_exception=False,
        ) as recorded:
            recording = _Recording(recorded)
            trace_id = self._trace.format_trace_id(recorded.get_span_context().trace_id)
            try:
                with structlog.contextvars.bound_contextvars(trace=trace_id):
                    yield recording
            except BaseException as error:
                recording.fail(type(error).__name__)
                raise

    @contextlib.contextmanager
    def continued(self, carrier: Mapping[str, Any]) -> Iterator[None]:
        given = {HEADER: str(carrier.get(HEADER) or "")}
        token: Token[Any] = self._context.attach(self._propagator.extract(given, self._context.Context()))
        try:
            yield
        finally:
            self._context.detach(token)

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier)
        return {HEADER: carrier[HEADER]} if HEADER in carrier else {}

    def stop(self) -> None:
        self._provider.shutdown()


_UNRECORDED: contextlib.nullcontext[Span] = contextlib.nullcontext(_Unrecorded())
_NO_CONTEXT: contextlib.nullcontext[None] = contextlib.nullcontext()
_recorder: _Recorder | None = None


def configure(settings: Settings) -> None:
    """Send the spans of this process, and of those that it forks, to `settings.otel_endpoint`, if there is one.

    What else there is to set, the SDK reads from its own variables, ``OTEL_EXPORTER_OTLP_HEADERS`` and
    ``OTEL_TRACES_SAMPLER`` among them. Raises ConfigurationError when the extra is not installed.
    """
    require(settings)
    if settings.otel_endpoint is None or _recorder is not None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    exporter = OTLPSpanExporter(endpoint=f"{settings.otel_endpoint}/v1/traces", timeout=SECONDS)
    record(BatchSpanProcessor(exporter))


def require(settings: Settings) -> None:
    """Raises ConfigurationError when there is an endpoint, and the extra is not installed."""
    if settings.otel_endpoint is None:
        return
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ModuleNotFoundError as error:
        detail = "FAIRLANE_OTEL_ENDPOINT is set, and OpenTelemetry is not installed: pip install 'fairlane[otel]'."
        raise ConfigurationError(detail) from error


def record(processor: SpanProcessor) -> None:
    """Hand every span that ends to `processor`, until `stop`."""
    global _recorder
    _recorder = _Recorder(processor)


def stop() -> None:
    """Send what has not been sent yet, and record no more."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is not None:
        recorder.stop()


def span(name: str, about: About, *, kind: Kind = "internal") -> contextlib.AbstractContextManager[Span]:
    """Trace the block; in one trace with the span around it, or with what is `continued`."""
    return _UNRECORDED if _recorder is None else _recorder.span(name, kind, about)


def continued(carrier: Mapping[str, Any] | None) -> contextlib.AbstractContextManager[None]:
    """Let spans of the block belong to the trace that the headers in `carrier` name; to a new one where none does."""
    return _NO_CONTEXT if _recorder is None else _recorder.continued(carrier or {})


def headers() -> dict[str, str]:
    """What a message must carry for `continued`."""
    return {} if _recorder is None else _recorder.headers()
