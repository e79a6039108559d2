"""The callers of `bench.herd`: steady ones, whose answers are measured, and many jobs done by a few at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

Job = TypeVar("Job")

AT_ONCE = 4


@dataclass
class Organization:
    """One organization, its key, and its workflows: those on a schedule, and one that callers start."""

    id: str
    size: int
    key: str
    scheduled: list[str] = field(default_factory=list)
    manual: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@dataclass(frozen=True)
class Answer:
    """`seconds` from `due`, when the request should have been sent, to the whole answer."""

    kind: str
    due: float
    seconds: float
    good: bool


def at_once(base: str, jobs: Iterable[Job], do: Callable[[httpx.Client, Job], None]) -> None:
    """Every job in its order, by a few clients at once; raises what the first that failed did."""
    with httpx.Client(base_url=base, timeout=60) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(lambda job: do(client, job), jobs):
            pass


class Callers:
    """A thread for each organization, from entering to leaving: three requests that read to one that starts a run."""

    def __init__(self, base: str, organizations: Sequence[Organization], rate: float) -> None:
        self.answers: list[Answer] = []
        self._base, self._pause = base, len(organizations) / rate
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._drive, args=(own, number / rate), daemon=True)
            for number, own in enumerate(organizations)
        ]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(90)

    def _drive(self, own: Organization, delay: float) -> None:
        workflow, last, number = own.manual[0], "", 0
        due = time.time() + delay
        with httpx.Client(base_url=self._base, headers=own.headers, timeout=60) as client:
            while not self._over.wait(max(0.0, due - time.time())):
                kind, method, path = self._next(number, workflow, last)
                try:
                    answer = client.request(method, path, json={} if method == "POST" else None)
                    good = answer.is_success
                    if good and kind == "start":
                        last = answer.json()["run"]["id"]
                except httpx.HTTPError:
                    good = False
                self.answers.append(Answer(kind, due, time.time() - due, good))
                due, number = due + self._pause, number + 1

    def _next(self, number: int, workflow: str, last: str) -> tuple[str, str, str]:
        return (
            ("start", "POST", f"/api/workflows/{workflow}/runs"),
            ("run", "GET", f"/api/runs/{last}"),
            ("runs", "GET", "/api/runs?limit=20"),
            ("workflow", "GET", f"/api/workflows/{workflow}"),
        )[number % 4]
