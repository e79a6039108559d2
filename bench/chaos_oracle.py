"""What must be true after `make chaos`: the invariants I1 to I8, each with what was counted and what broke it.

Postgres itself watches that nothing terminal changes (`WATCH`, triggers of this program, not of the engine); a sampler
looks at the caps while the faults go on; everything else is asked when all is calm.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx
import redis

from bench.chaos_load import Seen
from bench.chaos_state import Chaos
from engine.fairshare.lanes import Lanes

CAP = 3
"""`max_concurrent_runs` of the first organization."""

WATCH = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.changes (what text, id text, old text, new text);
CREATE FUNCTION chaos.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO chaos.changes VALUES (TG_TABLE_NAME, CASE TG_TABLE_NAME WHEN 'runs' THEN to_jsonb(OLD) ->> 'id'
        ELSE (to_jsonb(OLD) ->> 'run_id') || ':' || (to_jsonb(OLD) ->> 'step_id') END, OLD.status, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER UPDATE ON runs FOR EACH ROW
    WHEN (OLD.finished_at IS NOT NULL AND (OLD.status, OLD.finished_at, OLD.output)
          IS DISTINCT FROM (NEW.status, NEW.finished_at, NEW.output)) EXECUTE FUNCTION chaos.note();
CREATE TRIGGER chaos AFTER UPDATE ON steps FOR EACH ROW
    WHEN (OLD.finished_at IS NOT NULL AND (OLD.status, OLD.finished_at, OLD.attempt)
          IS DISTINCT FROM (NEW.status, NEW.finished_at, NEW.attempt)) EXECUTE FUNCTION chaos.note();
"""


@dataclass
class Verdict:
    """One invariant: what was counted, and every break of it (none when it holds)."""

    invariant: str
    counted: str
    broken: list[str] = field(default_factory=list)


class Sampler:
    """I5, and I4 from outside, looked at all the time while the faults go on."""

    def __init__(self, chaos: Chaos, *, every: float = 0.2) -> None:
        self._chaos = chaos
        self._every = every
        self._stop = threading.Event()
        self.samples = self.after_loss = self.strangers = 0
        self.over: list[str] = []
        self.let_in: list[str] = []
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _loop(self) -> None:
        while not self._stop.wait(self._every):
            self._cap()
            if self.samples % 10 == 0:
                self._stranger()

    def _cap(self) -> None:
        """Seen by the receiver: runs of the first organization do one call at a time."""
        load, now = self._chaos.load, time.time()
        with load.receiver.lock:
            running = load.receiver.open[load.tenants[0].id]
        self.samples += 1
        if running <= CAP:
            return
        grace = self._chaos.ground.lease * 1.5 + 5
        if any(at <= now <= at + grace for at in [*self._chaos.redis_lost_at, *self._chaos.ground.thawed]):
            self.after_loss += 1  # what a dead Redis counted is counted again as it is told
        else:
            self.over.append(f"{running} at once")

    def _stranger(self) -> None:
        load = self._chaos.load
        mine, other = load.tenants[0], load.tenants[1]
        run = next((run for run, owner in list(load.accepted.items()) if owner is other), None)
        if run is None:
            return
        try:
            answer = mine.client.get(f"/api/runs/{run}")
        except httpx.HTTPError:
            return
        self.strangers += 1
        if answer.status_code not in (404, 401, 403, 503):
            self.let_in.append(f"{run}: {answer.status_code}")


class Oracle:
    """Asks everything once; `judge` returns the eight verdicts."""

    def __init__(self, chaos: Chaos, sampler: Sampler) -> None:
        self.chaos, self.sampler = chaos, sampler
        self.load, self.ground = chaos.load, chaos.ground
        with self.ground.sql() as connection:
            self.runs: dict[str, Any] = {
                str(row[0]): row[1:]
                for row in connection.execute("SELECT id, tenant_id, status, attempt, error FROM runs").fetchall()
            }
            self.steps: list[Any] = connection.execute(
                "SELECT tenant_id, run_id, step_id, item, status, extract(epoch FROM finished_at)::float, started_at"
                " IS NOT NULL FROM steps"
            ).fetchall()
            self.changes: list[Any] = connection.execute("SELECT * FROM chaos.changes").fetchall()
            self.twice: list[Any] = connection.execute(
                "SELECT workflow_id, input ->> 'scheduled_at', count(*) FROM runs WHERE trigger = 'schedule'"
                " GROUP BY 1, 2 HAVING count(*) > 1"
            ).fetchall()

    def judge(self) -> list[Verdict]:
        return [self.i1(), self.i2(), self.i3(), self.i4(), self.i5(), self.i6(), self.i7(), self.i8()]

    def i1(self) -> Verdict:
        lost = [run for run in self.load.accepted if run not in self.runs]
        open_ = [f"{run} is {row[1]}" for run, row in self.runs.items() if row[1] not in TERMINAL]
        states = Counter(row[1] for row in self.runs.values())
        counted = f"{len(self.load.accepted)} accepted, {len(self.runs)} runs: " + in_words(states)
        counted += f"; {self.chaos.cancelled} cancels counted"
        return Verdict(
            "I1 what was accepted has ended", counted, [f"lost {run}" for run in lost] + open_ + self.load.broken
        )

    def i2(self) -> Verdict:
        broken = [f"{what} {id_}: {old} became {new}" for what, id_, old, new in self.changes]
        broken += [f"schedule {row[0]} fired {row[2]} times for {row[1]}" for row in self.twice]
        done = sum(step[4] in ("succeeded", "failed", "skipped") for step in self.steps)
        return Verdict("I2 one result for each run and step, never changed", f"{done} finished steps", broken)

    def i3(self) -> Verdict:
        seen: dict[str, list[Seen]] = defaultdict(list)
        for request in self.load.receiver.seen:
            seen[request.key].append(request)
        broken, late = [], 0
        for _tenant, run, step, item, status, finished, _ in self.steps:
            requests = seen.get(f"{run}:{step}" + (f":{item}" if item else ""), [])
            if status == "succeeded" and not requests and self._calls(step, item):
                broken.append(f"{run}:{step} succeeded and was never seen")
            if len(requests) > max(int(self.runs[str(run)][2]), 1):
                broken.append(f"{run}:{step} was seen {len(requests)} times in {self.runs[str(run)][2]} attempts")
            for request in requests:
                if finished and request.at > finished + 0.05:
                    late += 1
                    if not any(at - 1 <= request.at <= at + 10 for at in self.ground.thawed):
                        broken.append(
                            f"{run}:{step} was done again {request.at - finished:.1f} s after it had finished"
                        )
        repeats = sum(len(requests) - 1 for requests in seen.values())
        strange = [key for key in seen if key.split(":")[0] not in self.runs]
        counted = (
            f"{len(seen)} keys seen, {repeats} repeated calls, {late} of them by a process that was taken for dead"
        )
        return Verdict("I3 every effect is seen, repeats only in flight", counted, broken + strange)

    def _calls(self, step: str, item: str) -> bool:
        return step not in ("shaky", "rest", "call") and not (step == "each" and not item)

    def i4(self) -> Verdict:
        owners = {secret: tenant.id for tenant in self.load.tenants for secret in tenant.secrets}
        broken = list(self.sampler.let_in)
        for request in self.load.receiver.seen:
            run = self.runs.get(request.key.split(":")[0])
            if run is None or run[0] != request.tenant or owners.get(request.secret) != request.tenant:
                broken.append(f"{request.key}: {request.tenant} with a secret of {owners.get(request.secret)}")
        rows = 0
        with self.ground.sql() as connection:
            for table in ("runs", "steps", "execution_logs"):
                for tenant in self.load.tenants:
                    found: Any = connection.execute(
                        f"SELECT count(*), count(*) FILTER (WHERE tenant_id <> %s) FROM {table} t"
                        " WHERE strpos(t::text, %s) > 0",
                        [tenant.id, tenant.marker],
                    ).fetchone()
                    rows += found[0]
                    broken += [f"{found[1]} rows of {table} with the marker of {tenant.id}"] if found[1] else []
        counted = f"{len(self.load.receiver.seen)} requests, {rows} rows, {self.sampler.strangers} looks by a stranger"
        return Verdict("I4 nothing crosses organizations", counted, broken)

    def i5(self) -> Verdict:
        counted = (
            f"{self.sampler.samples} samples of a cap of {CAP}, {self.sampler.after_loss} above it just after a loss"
        )
        return Verdict("I5 no more at once than the cap", counted, self.sampler.over)

    def i6(self) -> Verdict:
        clean, bar = sorted(self.chaos.recoveries.clean), self.ground.lease + 5
        if not clean:
            return Verdict("I6 goes on in time", "nothing was interrupted by a kill alone", [])
        p99 = clean[min(int(len(clean) * 0.99), len(clean) - 1)]
        others = sorted(self.chaos.recoveries.disturbed)
        counted = f"{len(clean)} interrupted, median {clean[len(clean) // 2]:.1f} s, p99 {p99:.1f} s"
        counted += f"; with a server harmed meanwhile {len(others)}, max {others[-1]:.1f} s" if others else ""
        return Verdict(f"I6 goes on within {bar:g} s (p99)", counted, [f"p99 {p99:.1f} s"] if p99 > bar else [])

    def i7(self) -> Verdict:
        lanes = Lanes(self.ground.redis.url)
        total = lanes.total()
        broken = [f"{fault.invariant} {fault.tenant}: {fault.detail}" for fault in lanes.check()]
        broken += [f"{total.backlog} wait"] * bool(total.backlog) + [f"{total.in_flight} in hand"] * bool(
            total.in_flight
        )
        with redis.Redis.from_url(self.ground.redis.url) as client:
            keys = sorted(str(key, "utf-8", "replace") for key in client.scan_iter())
            left: Any = client.hlen("unacked")
        broken += [f"{left} unacked"] if left else []
        counted = f"{len(keys)} keys in Redis, {total.set_aside} of {self.chaos.poisoned} poisonous still set aside"
        return Verdict("I7 nothing is left in hand", counted, broken)

    def i8(self) -> Verdict:
        secrets = [secret for tenant in self.load.tenants for secret in tenant.secrets]
        places = {str(path.relative_to(self.ground.folder)): path.read_bytes() for path in self._files()}
        places["Redis"] = self._redis_text()
        with self.ground.sql() as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                rows = connection.execute(f'SELECT t::text FROM "{table}" t').fetchall()
                places[f"table {table}"] = "\n".join(str(row[0]) for row in rows).encode()
        broken = [
            f"{place} holds a secret" for place, text in places.items() if any(s.encode() in text for s in secrets)
        ]
        size = sum(map(len, places.values())) / 1e6
        counted = f"{len(secrets)} secrets looked for in {len(places)} places, {size:.0f} MB"
        return Verdict("I8 no secret in logs, Redis or Postgres", counted, broken)

    def _files(self) -> list[Any]:
        redis_files = [path for path in self.ground.redis.folder.rglob("*") if path.is_file()]
        return [*self.ground.folder.rglob("*.log"), *(path for path in redis_files if path.suffix != ".log")]

    def _redis_text(self) -> bytes:
        with redis.Redis.from_url(self.ground.redis.url) as client:
            dumps: Any = [client.dump(key) for key in client.scan_iter()]
        return b"\n".join(dump or b"" for dump in dumps)


TERMINAL = ("succeeded", "failed", "cancelled")


def in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
