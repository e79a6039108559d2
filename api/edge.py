"""What surrounds every request: its id, the limits on what is read, headers that browsers obey, the last resort.

The id comes from ``X-Request-ID`` when a proxy in front gave one, and stands in the answer, in every log line of the
request and in every problem document. A trace that ``traceparent`` names goes on here, if any are recorded
(`engine.tracing`); no span has the address itself, since those of resume links are secrets. A body that is too large is
refused before it is read, or as soon as it has become too large; one that does not come within half a minute is not
waited for. What no handler foresaw is answered here with a 500 that tells nothing.
"""

from __future__ import annotations

import asyncio
import re

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import Problem, unforeseen
from engine import ids, metrics, tracing

BODY_LIMIT = 2 * 1024 * 1024
OPEN_BODY_LIMIT = 64 * 1024
"""For those who say who they are: they are nobody yet."""
BODY_SECONDS = 30.0
"""For a whole body to come."""
WEBHOOKS = "/api/webhooks/"
AUTHENTICATION = "/api/auth/"
DOCS = "/api/docs"
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: not traced."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_DOCS_POLICY = (
    "default-src 'none'; frame-ancestors 'none'; connect-src 'self'; img-src 'self' data: https://fastapi.tiangolo.com;"
    " script-src 'unsafe-inline' https://cdn.jsdelivr.net; style-src 'unsafe-inline' https://cdn.jsdelivr.net"
)
_HSTS = "max-age=31536000; includeSubDomains"


class Edge:
    """The outermost middleware. `https` says that callers reach the API over TLS."""

    def __init__(self, app: ASGIApp, *, webhook_limit: int, https: bool) -> None:
        self._app = app
        self._webhook_limit = webhook_limit
        self._https = https

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else ids.new_id("req")
        scope["fairlane.request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        exchange = _Exchange(scope, receive, send, limit=self._limit(scope), headers=self._headers(scope, request_id))
        if scope["path"] in PROBES:
            await exchange.run(self._app)
            return
        about = {"http.request.method": scope["method"], "fairlane.request_id": request_id}
        with tracing.continued(headers), tracing.span("request", about, kind="server") as span:
            await exchange.run(self._app)
            exchange.describe(span)

    def _limit(self, scope: Scope) -> int:
        if scope["path"].startswith(WEBHOOKS):
            return self._webhook_limit
        return OPEN_BODY_LIMIT if scope["path"].startswith(AUTHENTICATION) else BODY_LIMIT

    def _headers(self, scope: Scope, request_id: str) -> dict[str, str]:
        policy = _DOCS_POLICY if scope["path"] == DOCS else _POLICY
        headers = {**_HEADERS, "Content-Security-Policy": policy, "X-Request-ID": request_id}
        return {**headers, "Strict-Transport-Security": _HSTS} if self._https else headers


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, limit: int, headers: dict[str, str]) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limit = limit
        self._headers = headers
        self._read = 0
        self._deadline: float | None = None
        self._is_read = False
        self._status: int | None = None

    async def run(self, app: ASGIApp) -> None:
        refused = self._refused()
        if refused is not None:
            if self._scope["path"].startswith(WEBHOOKS):
                metrics.WEBHOOKS.inc(outcome="too_large" if refused.status_code == 413 else "bad_request")
            await refused(self._scope, self._receive, self.send)
            return
        try:
            await app(self._scope, self.receive, self.send)
        except ClientDisconnect:  # nobody is there to be answered, and nothing of ours has failed
            pass
        except Exception as error:
            answer = unforeseen(Request(self._scope), error)
            if self._status is None:
                await answer(self._scope, self._receive, self.send)

    def _refused(self) -> Problem | None:
        length = Headers(scope=self._scope).get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            # The connection ends with it: nobody wants to read the rest.
            close = {"Connection": "close"}
            return Problem(413, "too_large", self._too_large(), headers=close, request_id=self._request_id)
        if "\0" in self._scope["path"] or b"%00" in self._scope["query_string"]:
            detail = "The address holds a NUL character, which no name or id contains."
            return Problem(400, "bad_request", detail, request_id=self._request_id)
        return None

    async def receive(self) -> Message:
        message = await self._next()
        self._is_read = not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._limit:
            raise HTTPException(413, self._too_large())
        return message

    async def _next(self) -> Message:
        if self._is_read:  # whoever waits now, for the end of the connection, may wait
            return await self._receive()
        loop = asyncio.get_running_loop()
        self._deadline = self._deadline or loop.time() + BODY_SECONDS
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"The body did not come within {BODY_SECONDS:g} seconds.") from None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                headers.setdefault(name, value)
        await self._send(message)

    def describe(self, span: tracing.Span) -> None:
        """Name the span by the route, which is known once the request has been answered."""
        if route := getattr(self._scope.get("route"), "path", None):
            span.rename(f"{self._scope['method']} {route}")
            span.note({"http.route": route})
        if self._status is None:  # the caller has gone, or the answer broke off before it began
            return
        span.note({"http.response.status_code": self._status})
        if self._status >= 500:
            span.fail(str(self._status))

    def _too_large(self) -> str:
        return f"The body is larger than {self._limit:,} bytes."

    @property
    def _request_id(self) -> str:
        return str(self._scope["fairlane.request_id"])
