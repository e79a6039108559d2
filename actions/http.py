"""The guarded HTTP client: the only way by which actions and poll sources reach the network.

Promises, for every call: it goes only where `actions.guard` allows, on every hop; it ends by its deadline and within
two seconds of a cancel, whatever the server does; it keeps at most 10 MB of answer, counted after decompression; it
reads no environment (no proxies, no .netrc), keeps no cookies, and sends a credential to no other host.

Redirects: with a credential attached none is followed. Without one, up to five, each judged like a first call; on a
hop to another origin only harmless headers travel on.

Connections are kept open for some seconds and shared by all calls of the process to the same origin; the rules are
the same for all of them. The pool belongs to one process id, so a client built before a fork works after it.

Failures: `RetryLater` for what may pass (network, time, names that do not resolve), `Fatal` for what will not (refused
targets, unreadable answers), with messages that show scheme, host and port but no path or query. Statuses are the
caller's to judge, except in `fetch`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from ssl import SSLContext

import httpcore
import httpx

from actions.guard import AddressPolicy, Resolver, Target, literal, parse_url, system_resolver
from actions.network import Call, GuardedBackend
from actions.replies import MAX_BODY_BYTES, failure, read_body
from engine.errors import ActionError, Fatal, RetryLater
from engine.ports import HttpReply

DEFAULT_USER_AGENT = "Fairlane"
MAX_CALL_SECONDS = 300.0
MAX_REDIRECTS = 5
MAX_IDLE_CONNECTIONS = 64
IDLE_SECONDS = 4.0
"""Shorter than the 5 s after which common servers hang up, so that a call seldom meets a connection just closed."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
_FRAMING = frozenset(
    {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "te", "trailer", "upgrade", "expect"}
)
_HARMLESS = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "idempotency-key", "user-agent"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request to make. `credential` says that url, headers or body hold a secret of a credential."""

    method: str
    url: str
    headers: Mapping[str, str]
    content: bytes = b""
    credential: bool = False
    follow: bool = True


class GuardedClient:
    """Thread-safe; one per process serves all tenants. Opens nothing until the first call. See the module."""

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        resolver: Resolver = system_resolver,
        user_agent: str = DEFAULT_USER_AGENT,
        ssl_context: SSLContext | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._policy = policy or AddressPolicy()
        self._resolver = resolver
        self._user_agent = user_agent
        self._ssl_context = ssl_context
        self._max_body_bytes = max_body_bytes
        self._pools: dict[int, httpcore.ConnectionPool] = {}

    def fetch(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> HttpReply:
        """GET for poll sources: any answer below 400 is returned; see `engine.ports.HttpClient`."""
        reply = self.send(Request("GET", url, headers or {}), seconds=timeout)
        if reply.status >= 400:
            raise failure(reply, subject=self.describe(url))
        return reply

    def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout: float = 10.0) -> int:
        """POST what is signed, so to nowhere else: no redirect is followed. The status, whatever it is."""
        return self.send(Request("POST", url, headers, body, credential=True), seconds=timeout).status

    def send(self, request: Request, *, seconds: float, pulse: Callable[[], None] | None = None) -> HttpReply:
        """Make the request and read the whole answer, in at most `seconds` (and never more than five minutes).

        `pulse` is called about twice a second while the call waits; what it raises ends the call, for example
        `engine.errors.Cancelled`.
        """
        if seconds <= 0:
            raise RetryLater("No time is left for the call.", code="timeout")
        call = Call(seconds=min(seconds, MAX_CALL_SECONDS), pulse=pulse)
        url = parse_url(request.url)
        headers = self._prepare(request.headers)
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._exchange(replace(request, headers=headers), url, call)
            location = reply.headers.get("location")
            if reply.status not in _REDIRECTS or not location or request.credential or not request.follow:
                return reply
            following = _join(url, location)
            if self._policy.target(following) != self._policy.target(url):
                headers = {name: value for name, value in headers.items() if name in _HARMLESS}
            request, headers = _redirected(request, headers, reply.status)
            url = following
        raise Fatal(f"{self.describe(str(url))} redirects more than {MAX_REDIRECTS} times.", code="too_many_redirects")

    def check(self, url: str) -> None:
        """Raise Fatal for what could never be called: its form, its port, or an address that it spells out."""
        target = self._policy.target(parse_url(url))
        if literal(target.host) is not None:
            self._policy.addresses(target.host, target.port, resolver=self._resolver)

    def describe(self, url: str) -> str:
        """Scheme, host and port of a URL, for messages: paths and queries may be secrets."""
        try:
            return str(self._policy.target(parse_url(url)))
        except ActionError:
            return "The server"

    def close(self) -> None:
        """Close idle connections. A call made afterwards opens new ones."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def _prepare(self, given: Mapping[str, str]) -> dict[str, str]:
        """Headers to send, by lower-case name. Those which frame the message are the client's alone: a forged one
        could make two calls that share a connection read each other's answers."""
        headers = {"accept": "*/*", "user-agent": self._user_agent}
        for name, value in given.items():
            lowered = name.strip().lower()
            if lowered in _FRAMING or lowered.startswith("proxy-"):
                raise Fatal(f"The header {name} cannot be set; it is the client's own.", code="invalid_header")
            headers[lowered] = value
        headers["accept-encoding"] = "gzip, deflate"
        return headers

    def _exchange(self, request: Request, url: httpx.URL, call: Call) -> HttpReply:
        """One hop: the whole answer to one request. Errors of the network become errors of actions here."""
        target = self._policy.target(url)
        wire = _wire_request(request, url, target)
        try:
            return self._once(wire, call, stale_allowed=request.method in _REPEATABLE)
        except httpcore.TimeoutException as error:
            raise RetryLater(f"{target} did not answer in time.", code="timeout") from error
        except httpcore.ConnectError as error:
            raise RetryLater(f"{target} cannot be reached: {_cause(error)}.", code="network") from error
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as error:
            raise RetryLater(f"{target} broke off the exchange: {_cause(error)}.", code="network") from error
        except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol) as error:
            raise Fatal(f"The request to {target} is not valid HTTP.", code="invalid_request") from error

    def _once(self, wire: httpcore.Request, call: Call, *, stale_allowed: bool) -> HttpReply:
        """Send and read. A pooled connection that proves dead before any answer is left for another one, where
        repeating the request is harmless by its method (RFC 9110, 9.2.2)."""
        while True:
            try:
                with call.request():
                    return self._read(self._pool().handle_request(wire))
            except (httpcore.NetworkError, httpcore.RemoteProtocolError):
                if call.connected or call.received or not stale_allowed:
                    raise

    def _read(self, response: httpcore.Response) -> HttpReply:
        try:
            headers = _reply_headers(response.headers)
            encoding = headers.get("content-encoding", "")
            body = read_body(response.iter_stream(), encoding=encoding, limit=self._max_body_bytes)
            return HttpReply(status=response.status, headers=headers, body=body)
        finally:
            response.close()

    def _pool(self) -> httpcore.ConnectionPool:
        pool = self._pools.get(os.getpid())
        return pool or self._pools.setdefault(os.getpid(), self._new_pool())

    def _new_pool(self) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=self._ssl_context or httpx.create_ssl_context(trust_env=False),
            max_connections=None,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=GuardedBackend(self._policy, self._resolver),
        )


def _wire_request(request: Request, url: httpx.URL, target: Target) -> httpcore.Request:
    headers = [(b"host", url.netloc)]
    try:
        headers += [(name.encode("ascii"), value.encode("utf-8")) for name, value in request.headers.items()]
        method = request.method.encode("ascii")
    except UnicodeEncodeError as error:
        raise Fatal("A header name or the method is not plain ASCII.", code="invalid_header") from error
    if request.content or request.method in {"POST", "PUT", "PATCH"}:
        headers.append((b"content-length", str(len(request.content)).encode()))
    address = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=target.port, target=url.raw_path)
    return httpcore.Request(method, address, headers=headers, content=request.content)


def _reply_headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """By lower-case name; a header that came several times is joined with commas."""
    headers: dict[str, str] = {}
    for key, content in raw:
        name, value = key.decode("ascii", "replace").lower(), content.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _join(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return parse_url(str(url.join(location)))
    except (httpx.InvalidURL, ValueError) as error:
        raise Fatal("The server redirects to a URL that cannot be read.", code="invalid_redirect") from error


def _redirected(request: Request, headers: dict[str, str], status: int) -> tuple[Request, dict[str, str]]:
    """The request that follows: 303, and 301 or 302 after a POST, become GET without a body, as browsers do."""
    after_post = status in {301, 302} and request.method == "POST"
    turns_into_get = after_post or (status == 303 and request.method != "HEAD")
    if not turns_into_get:
        return request, headers
    kept = {name: value for name, value in headers.items() if name != "content-type"}
    return replace(request, method="GET", content=b""), kept


def _cause(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
