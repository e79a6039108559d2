"""Outside services as local servers that speak the documented protocols, and one that breaks every rule.

`SlackService`, `DiscordService`, `OpenWeatherService` and `EchoService` are ordinary HTTP/1.1 servers with keep-alive;
each records what it received. `HostileServer` writes raw bytes: bodies without end, one byte at a time, bombs, loops.
All listen on a free port of 127.0.0.1 and are context managers.
"""

from __future__ import annotations

import functools
import gzip
import json
import socketserver
import ssl
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Received:
    """One request as it came in; header names are lower case."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    connection: int
    """The client's port: equal for requests on one connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json", **(headers or {})})


class Service:
    """A local HTTP server. Subclasses say what is answered; `script` holds answers that come first, in order."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.script: list[Answer] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one(self) -> None:
                service._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = handle_one  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.endpoint = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Received) -> Answer:
        raise NotImplementedError

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        request = Received(
            method=handler.command,
            path=parts.path,
            query=parse_qs(parts.query, keep_blank_values=True),
            headers={name.lower(): value for name, value in handler.headers.items()},
            body=handler.rfile.read(int(handler.headers.get("content-length") or 0)),
            connection=handler.client_address[1],
        )
        self.received.append(request)
        answer = self.script.pop(0) if self.script else self.answer(request)
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        if answer.status != 204:
            handler.send_header("content-length", str(len(answer.body)))
        handler.end_headers()
        if request.method != "HEAD":
            handler.wfile.write(answer.body)


class EchoService(Service):
    """Answers with what it got, as JSON."""

    def answer(self, request: Received) -> Answer:
        return json_answer(
            {"method": request.method, "path": request.path, "headers": request.headers, "body": request.body.decode()}
        )


class SlackService(Service):
    """Incoming webhooks (``/services/...``: plain text) and ``/api/chat.postMessage`` (JSON with ok, error, ts)."""

    def __init__(self, *, token: str = "xoxb-good", channels: tuple[str, ...] = ("#general", "C1")) -> None:
        super().__init__()
        self.token = token
        self.channels = channels

    def answer(self, request: Received) -> Answer:
        if request.path.startswith("/services/"):
            return self._webhook(request)
        if request.path != "/api/chat.postMessage":
            return json_answer({"ok": False, "error": "unknown_method"})
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return json_answer({"ok": False, "error": "invalid_auth"})
        if request.json.get("channel") not in self.channels:
            return json_answer({"ok": False, "error": "channel_not_found"})
        return json_answer({"ok": True, "channel": "C1", "ts": "1503435956.000247", "message": request.json})

    def _webhook(self, request: Received) -> Answer:
        if request.path != "/services/T000/B000/secret":
            return Answer(404, b"no_service", {"content-type": "text/html"})
        if not request.json.get("text"):
            return Answer(400, b"no_text", {"content-type": "text/html"})
        return Answer(200, b"ok", {"content-type": "text/html"})

    @staticmethod
    def rate_limited(seconds: int) -> Answer:
        return json_answer({"ok": False, "error": "ratelimited"}, status=429, headers={"retry-after": str(seconds)})


class DiscordService(Service):
    """``/api/webhooks/{id}/{token}``: 204, or 200 with the message for ``?wait=true``; 404 for an unknown webhook."""

    def answer(self, request: Received) -> Answer:
        if request.path != "/api/webhooks/1/secret":
            return json_answer({"message": "Unknown Webhook", "code": 10015}, status=404)
        if not request.json.get("content"):
            return json_answer({"message": "Cannot send an empty message", "code": 50006}, status=400)
        if request.query.get("wait") == ["true"]:
            return json_answer({"id": "42", "content": request.json["content"]})
        return Answer(204)

    @staticmethod
    def rate_limited(seconds: float) -> Answer:
        body = {"message": "You are being rate limited.", "retry_after": seconds, "global": False}
        return json_answer(body, status=429, headers={"retry-after": str(int(seconds) + 1)})


class OpenWeatherService(Service):
    """``/data/2.5/weather`` with ``q``, ``units``, ``appid``; 401, 404 and 429 bodies as documented."""

    KELVIN = 298.48

    def __init__(self, *, key: str = "good-key") -> None:
        super().__init__()
        self.key = key

    def answer(self, request: Received) -> Answer:
        if request.path != "/data/2.5/weather":
            return json_answer({"cod": "404", "message": "Internal error"}, status=404)
        if request.query.get("appid") != [self.key]:
            sentence = "Invalid API key. Please see https://openweathermap.org/faq#error401 for more info."
            return json_answer({"cod": 401, "message": sentence}, status=401)
        if request.query.get("q") != ["London"]:
            return json_answer({"cod": "404", "message": "city not found"}, status=404)
        return json_answer(self._weather(request.query.get("units", ["standard"])[0]))

    def _weather(self, units: str) -> dict[str, Any]:
        celsius = self.KELVIN - 273.15
        temp = {"metric": celsius, "imperial": celsius * 9 / 5 + 32}.get(units, self.KELVIN)
        return {
            "coord": {"lon": -0.1257, "lat": 51.5085},
            "weather": [{"id": 501, "main": "Rain", "description": "moderate rain", "icon": "10d"}],
            "base": "stations",
            "main": {"temp": round(temp, 2), "feels_like": round(temp, 2), "pressure": 1015, "humidity": 64},
            "wind": {"speed": 0.62, "deg": 349},
            "dt": 1661870592,
            "sys": {"country": "GB"},
            "name": "London",
            "cod": 200,
        }


@functools.cache
def bomb(encoding: str) -> bytes:
    """64 KB that decompress to 64 MB."""
    zeros = b"\0" * 64 * 1024 * 1024
    return gzip.compress(zeros) if encoding == "gzip" else zlib.compress(zeros)


class HostileServer:
    """Raw TCP that answers each path in its own bad way."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.paths: list[str] = []
        self.heads: list[bytes] = []
        self.started = threading.Event()
        """Set once an endless answer began."""
        self.released = threading.Event()
        """Set once the client left an endless answer."""
        hostile = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                hostile._serve(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.endpoint = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: socketserver.StreamRequestHandler) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = handler.rfile.readline()
            if not line:
                return
            head += line
        path = head.split(b" ", 2)[1].decode()
        self.paths.append(path)
        self.heads.append(head)
        behave: Callable[[socketserver.StreamRequestHandler, str], None] = getattr(
            self, "_" + path.strip("/").split("/")[0].split("?")[0].replace("-", "_")
        )
        try:
            behave(handler, path)
        except OSError:
            self.released.set()

    def _endless(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        """A chunked body at full speed that does not end."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self._repeat(handler, b"10000\r\n" + b"x" * 0x10000 + b"\r\n", pause=0)

    def _drip(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        """A body one byte at a time; each byte comes before any read timeout."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        self._repeat(handler, b"x", pause=0.05)

    def _slow_headers(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        self._repeat(handler, b"x", pause=0.05)

    def _informational(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        self._repeat(handler, b"HTTP/1.1 100 Continue\r\n\r\n", pause=0.01)

    def _silent(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        """Takes the request and never answers."""
        self.started.set()
        if not handler.connection.recv(1):
            self.released.set()

    def _huge_header(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Huge: " + b"x" * 2_000_000 + b"\r\nContent-Length: 0\r\n\r\n")

    def _many_headers(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self._repeat(handler, b"X-Many: yes\r\n" * 1000, pause=0)

    def _gzip_bomb(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        self._whole(handler, bomb("gzip"), b"Content-Encoding: gzip\r\n")

    def _deflate_bomb(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        self._whole(handler, bomb("deflate"), b"Content-Encoding: deflate\r\n")

    def _brotli(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        self._whole(handler, b"\x0b\x02\x80hello\x03", b"Content-Encoding: br\r\n")

    def _lying_length(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        """Says ten gigabytes; sends a little and hangs up."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\nxyz")

    def _garbage(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        handler.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")

    def _hang_up(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        return

    def _switch(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        handler.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n")

    def _loop(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        self._redirect(handler, "/loop")

    def _to(self, handler: socketserver.StreamRequestHandler, path: str) -> None:
        """``/to/<status>/<where>`` redirects there."""
        _, _, status, where = path.split("/", 3)
        self._redirect(handler, where, status=int(status))

    def _redirect(self, handler: socketserver.StreamRequestHandler, where: str, *, status: int = 302) -> None:
        handler.wfile.write(
            f"HTTP/1.1 {status} Found\r\nLocation: {where}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )

    def _whole(self, handler: socketserver.StreamRequestHandler, body: bytes, headers: bytes) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n" % (headers, len(body)) + body)

    def _repeat(self, handler: socketserver.StreamRequestHandler, piece: bytes, *, pause: float) -> None:
        while not self.stop.wait(pause):
            handler.wfile.write(piece)
            self.started.set()
