"""What the guard costs: http.request over loopback beside bare httpx, in one run.

Both call the same keep-alive server in a child process, one call after another, in alternating blocks so that a busy
machine slows both alike. Prints a table and ``RESULT http-client ratio=<ours / bare httpx, time per call>``.

    python -m bench.http_client [--calls 4000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import socketserver
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import httpx
from pydantic import Secret

from actions.http import GuardedClient, Request
from actions.registry import build

BLOCK = 200
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while line := self.rfile.readline():
            if line == b"\r\n":
                self.wfile.write(ANSWER)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def serve(ready: Connection) -> None:
    """Answers every request with the same small JSON, until the process is ended."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        ready.send(server.server_address[1])
        server.serve_forever()


class _Step:
    """As much of a step as http.request needs."""

    tenant_id = workflow_id = step_id = "bench"
    run_id, attempt, idempotency_key = "bench", 1, "bench:bench"
    credential: Secret[dict[str, Any]] | None = None

    def remaining(self) -> float:
        return 30.0

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def log(self, level: str, message: str, **data: object) -> None:
        pass


def contenders(url: str, endpoint: str) -> dict[str, Callable[[], object]]:
    """What is measured, by name: one call each."""
    bare = httpx.Client()
    registry = build(allowed_networks=[endpoint])
    client: GuardedClient = registry.client
    action = registry["http.request"]
    step = _Step()

    def request_action() -> object:
        return action.run(step, action.input_model.model_validate({"url": url}))

    return {
        "bare httpx": lambda: bare.get(url).json(),
        "guarded client": lambda: client.send(Request("GET", url, {}), seconds=30),
        "http.request": request_action,
    }


def measure(calls: dict[str, Callable[[], object]], *, total: int) -> dict[str, float]:
    """Microseconds per call of each: the median over blocks."""
    blocks: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(max(3, total // BLOCK)):
        for name, call in calls.items():
            began = time.perf_counter()
            for _ in range(BLOCK):
                call()
            blocks[name].append((time.perf_counter() - began) / BLOCK * 1e6)
    return {name: statistics.median(times) for name, times in blocks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=4000)
    options = parser.parse_args()
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(there,), daemon=True)
    server.start()
    try:
        port = here.recv()
        costs = measure(contenders(f"http://127.0.0.1:{port}/", f"127.0.0.1:{port}"), total=options.calls)
    finally:
        server.terminate()
        server.join()
    for name, cost in costs.items():
        print(f"{name:<16} {cost:8.1f} us/call")
    ratios = {name: costs[name] / costs["bare httpx"] for name in costs}
    print(f"RESULT http-client ratio={ratios['http.request']:.2f} client_ratio={ratios['guarded client']:.2f}")


if __name__ == "__main__":
    main()
