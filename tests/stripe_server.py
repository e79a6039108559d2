"""A server that speaks what we use of Stripe's protocol: meter events, taken once for each identifier."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

KEY = "sk_test_of_the_tests"


@dataclass
class StripeServer:
    """`moods` are what it does with the next requests; without any it takes them.

    ``busy`` and ``broken`` answer 429 and 500 and take nothing; ``lost`` takes the event and breaks the connection.
    """

    url: str = ""
    events: dict[str, dict[str, str]] = field(default_factory=dict)
    """By identifier, each as it was taken: once."""
    asked: list[str] = field(default_factory=list)
    """The identifiers of all requests."""
    moods: list[str] = field(default_factory=list)
    customers: set[str] = field(default_factory=lambda: {"cus_acme", "cus_beta"})
    when_taken: Callable[[], None] = lambda: None
    """Called when it has an event, before it answers."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def total(self, customer: str) -> int:
        """What the meter shows for a customer."""
        return sum(int(event["value"]) for event in self.events.values() if event["customer"] == customer)

    def answer(self, path: str, key: str, form: dict[str, str]) -> tuple[int, Any] | None:
        """Status and body; None to break the connection."""
        if path != "/v1/billing/meter_events":
            return 404, _error("Unrecognized request URL")
        if key != f"Bearer {KEY}":
            return 401, _error(f"Invalid API Key provided: {key[-4:]}")
        identifier, customer = form["identifier"], form["payload[stripe_customer_id]"]
        with self.lock:
            self.asked.append(identifier)
            mood = self.moods.pop(0) if self.moods else "fine"
            if mood in ("busy", "broken"):
                return (429, _error("Too many requests")) if mood == "busy" else (500, _error("Oh", kind="api_error"))
            if identifier in self.events:
                return 400, _error(f"An event already exists with identifier {identifier}.")
            if customer not in self.customers:
                return 400, _error(f"No such customer: '{customer}'")
            self.events[identifier] = {
                "customer": customer,
                "value": form["payload[value]"],
                "timestamp": form["timestamp"],
                "event_name": form["event_name"],
            }
            self.when_taken()
            return None if mood == "lost" else (200, {"object": "billing.meter_event", "identifier": identifier})


def _error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}


@contextmanager
def stripe_server() -> Iterator[StripeServer]:
    state = StripeServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            found = state.answer(self.path, self.headers["Authorization"], form)
            if found is None:  # a reset, so that the other side gets no half of an answer
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            status, document = found
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()
