"""The other side of the demo: a small HTTP server on loopback that prints what Fairlane sends to it.

``python -m embedded.receiver PORT``. Each request is one line with its idempotency key, then the body; JSON on one line
if it fits, else indented. It answers 200 with the idempotency key, and never shows the value of a credential.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from embedded.ports import LOOPBACK

MAX_BODY = 1024 * 1024
"""Bytes of a body that are read and shown."""
LINE = 100
"""Characters of JSON that are shown on one line."""


class Receiver(BaseHTTPRequestHandler):
    """Takes any method on any path."""

    protocol_version = "HTTP/1.1"

    def _receive(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > MAX_BODY:
            self._answer(413, {"error": f"more than {MAX_BODY} bytes"})
            self.close_connection = True
            return
        body = self.rfile.read(length)
        key = self.headers.get("Idempotency-Key")
        _print_request(f"{self.command} {self.path}", self._traits(key), body)
        self._answer(200, {"received": True, "idempotency_key": key})

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _receive  # noqa: N815 - the names http.server looks for

    def _traits(self, key: str | None) -> str:
        scheme = (self.headers.get("Authorization") or "").partition(" ")[0]
        traits = {"idempotency-key": key, "authorization": f"{scheme} ***" if scheme else None}
        return " ".join(f"{name}={value}" for name, value in traits.items() if value)

    def _answer(self, status: int, body: dict[str, object]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Every request is printed already, with its body."""


def _print_request(request: str, traits: str, body: bytes) -> None:
    lines = [f"{request} {traits}".rstrip()]
    lines += _shown(body).splitlines()
    print("\n  ".join(lines), flush=True)  # noqa: T201 - its output is what it is for


def _shown(body: bytes) -> str:
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= LINE else json.dumps(value, indent=2, ensure_ascii=False)


def main() -> None:
    """Serve until killed."""
    ThreadingHTTPServer((LOOPBACK, int(sys.argv[1])), Receiver).serve_forever()


if __name__ == "__main__":
    main()
