"""The load of `bench.ledger`: organizations of every kind of plan, and callers that start, cancel and replay.

A caller keeps every answer. One that got none, or an error of the server, asks again with the same key until it has
one, so the runs that callers know are exactly those that were started from outside. Only a refusal that got lost on its
way is not known, and counted as such.
"""

from __future__ import annotations

import queue
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CALLERS = 8
PATIENCE = 240.0
"""Seconds that a caller asks again; longer than an API that was killed needs to come back."""
CANCELS, REPLAYS = 0.06, 0.05
"""Shares of starts after which the run is cancelled, or an earlier one is replayed."""

HOOK, MANUAL = {"type": "webhook"}, {"type": "manual"}
KINDS = ("plain", "plain", "plain", "hook", "hook", "hook", "fails", "shaky", "slow", "list", "sleepy", "parent")


@dataclass(frozen=True)
class Recipe:
    """How an organization is limited. `share`: the monthly limit, as a share of what it will be asked for."""

    name: str
    plan: str
    share: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    policy: str = "hold"
    later: str | None = None
    """What becomes of it when half of the load is over: ``raised`` or the name of a plan."""

    @property
    def stays_over(self) -> bool:
        return self.share is not None and self.later is None

    @property
    def last_plan(self) -> str:
        return self.plan if self.later in (None, "raised") else self.later


RECIPES = (
    Recipe("free", "free"),
    Recipe("team", "team"),
    Recipe("no limits", "enterprise"),
    Recipe("two at once", "enterprise", limits={"max_concurrent_runs": 2}),
    Recipe("held", "free", share=0.6),
    Recipe("held, then raised", "team", share=0.4, later="raised"),
    Recipe("rejected", "free", share=0.5, policy="reject"),
    Recipe("short queue", "team", limits={"max_queued_runs": 3}),
    Recipe("held, then upgraded", "tiny", later="enterprise"),
    Recipe("changes its plan", "free", later="team"),
)


@dataclass
class Tenant:
    """One organization: its key, its workflows by kind, and the runs that callers started."""

    id: str
    recipe: Recipe
    key: str
    every: float
    """Seconds from one run of its schedule to the next."""
    workflows: dict[str, str] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def documents(self) -> dict[str, dict[str, Any]]:
        """In the order of their making; a name that begins with ``do`` is a call of an action (`FROM_RUNS`)."""
        tells = {"id": "do_first", "action": "debug.echo", "with": {"text": "hello"}}
        last = {**tells, "id": "do_last"}
        retry = {"retry": {"attempts": 4, "initial": "50ms", "max": "200ms"}}
        fails = {"id": "do_fail", "action": "debug.fail", "with": {"message": "on purpose"}}
        shaky = {**fails, "with": {"message": "twice", "times": 2}, **retry}
        slow = {"id": "do_slow", "action": "debug.sleep", "with": {"seconds": 0.7}}
        each = {**tells, "id": "do_each", "for_each": {"items": "[1, 2, 3]", "parallel": 2}}
        call = {
            "id": "call",
            "action": "workflow.run",
            "with": {"workflow": self.workflows.get("plain", ""), "input": {}},
        }
        return {
            "plain": {"trigger": MANUAL, "steps": [tells]},
            "hook": {"trigger": HOOK, "steps": [tells, last | {"with": {"a": 1}}]},
            "fails": {
                "trigger": MANUAL,
                "steps": [tells, fails],
                "on_failure": {"workflow": self.workflows.get("plain", "")},
            },
            "shaky": {"trigger": MANUAL, "steps": [tells, shaky, last]},
            "slow": {"trigger": MANUAL, "steps": [slow, last]},
            "list": {"trigger": MANUAL, "steps": [each, last]},
            "sleepy": {"trigger": MANUAL, "steps": [tells, {"id": "rest", "wait": {"for": "1s"}}, last]},
            "parent": {"trigger": MANUAL, "steps": [call, last]},
            "clock": {
                "trigger": {"type": "schedule", "every": f"{self.every:g}s", "missed": "all"},
                "steps": [tells],
            },
        }

    def set_up(self, client: httpx.Client) -> None:
        for kind in self.documents():
            definition = {"name": kind, **self.documents()[kind]}
            answer = client.post("/api/workflows", json={"name": kind, "definition": definition}, headers=self.headers)
            if answer.status_code != 201:
                raise RuntimeError(f"workflow {kind}: {answer.text}")
            self.workflows[kind] = answer.json()["id"]


@dataclass(frozen=True)
class Job:
    """One start; `seed` decides what follows it."""

    tenant: Tenant
    kind: str
    seed: int


class Callers:
    """Threads that do jobs until there are none."""

    def __init__(self, base: str, tenants: Sequence[Tenant], seed: int) -> None:
        self.tenants = tenants
        self.refused: Counter[str] = Counter()
        """Refusals that callers heard, by organization."""
        self.unheard: Counter[str] = Counter()
        """Requests without an answer: a refusal may have got lost."""
        self.answers: Counter[str] = Counter()
        self.cancelled = self.replayed = 0
        self.broken: list[str] = []
        self._base, self._rng = base, random.Random(seed)
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def work(self, starts: int, ends: float) -> None:
        """So many starts, spread evenly over the organizations; no new one after `ends`, on the monotonic clock."""
        jobs = [
            Job(self.tenants[number % len(self.tenants)], self._rng.choice(KINDS), self._rng.getrandbits(63))
            for number in range(starts)
        ]
        self._rng.shuffle(jobs)
        threads = [threading.Thread(target=self._drive, args=(ends,), daemon=True) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for job in [*jobs, *[None] * CALLERS]:
            self._jobs.put(job)
        for thread in threads:
            thread.join()

    def _drive(self, ends: float) -> None:
        with httpx.Client(base_url=self._base, timeout=20) as client:
            while (job := self._jobs.get()) is not None:
                if time.monotonic() < ends:
                    self._do(client, job)

    def _do(self, client: httpx.Client, job: Job) -> None:
        rng, tenant = random.Random(job.seed), job.tenant
        key, workflow = uuid.UUID(int=rng.getrandbits(128)).hex, tenant.workflows[job.kind]
        if job.kind == "hook":
            run = self._start(client, tenant, f"/api/webhooks/{workflow}", {"hello": 1}, {"webhook-id": key})
        else:
            path = f"/api/workflows/{workflow}/runs"
            run = self._start(client, tenant, path, {"input": {"n": 1}}, {"Idempotency-Key": key})
        if run is not None and rng.random() < CANCELS:
            answer = self._ask(client, tenant, f"/api/runs/{run}/cancel", None, {})
            self.cancelled += answer is not None and answer.status_code == 200
        if rng.random() < REPLAYS and tenant.runs:
            earlier = rng.choice(tenant.runs)
            made = self._start(
                client, tenant, f"/api/runs/{earlier}/replay", {"from": "start"}, {"Idempotency-Key": key}
            )
            self.replayed += made is not None

    def _start(self, client: httpx.Client, tenant: Tenant, path: str, body: Any, headers: dict[str, str]) -> str | None:
        """The run; None when it was refused."""
        answer = self._ask(client, tenant, path, body, headers)
        if answer is None:
            self.broken.append(f"no answer to {path} in {PATIENCE:g} s")
            return None
        document = answer.json()
        if answer.status_code == 202:
            run: str = document.get("run_id") or document.get("run", document)["id"]
            with self._lock:
                tenant.runs.append(run)
            return run
        if answer.status_code == 429:
            with self._lock:
                self.refused[tenant.id] += 1
        elif document.get("code") != "run_not_ended":
            self.broken.append(f"{path} answered {answer.status_code} {answer.text}")
        return None

    def _ask(
        self, client: httpx.Client, tenant: Tenant, path: str, body: Any, headers: dict[str, str]
    ) -> httpx.Response | None:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                answer = client.post(path, json=body, headers=tenant.headers | headers)
            except httpx.HTTPError as error:
                self._note(type(error).__name__, tenant)
            else:
                self._note(str(answer.status_code))
                if answer.status_code < 500:
                    return answer
                self.unheard[tenant.id] += 1
            time.sleep(0.3)
        return None

    def _note(self, what: str, unheard: Tenant | None = None) -> None:
        with self._lock:
            self.answers[what] += 1
            if unheard is not None:
                self.unheard[unheard.id] += 1
