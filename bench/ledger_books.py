"""The books of `bench.ledger`: what each of them says that organizations used, and where two do not agree.

A book states numbers by organization, month and measure. The table of runs is read through a journal that Postgres
itself keeps of it (`JOURNAL`, triggers of this program, not of the engine): when a run came to be admitted or held, and
when a worker began and let go of it. From that alone the ledger, its roll-ups, the counters, the usage page, the
quotas, the invoice and the metrics must be what they are. Metrics have no months, and are compared with all time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import psycopg
from prometheus_client.parser import text_string_to_metric_families

Key: TypeAlias = tuple[str, str, str]
"""Organization, month, measure."""
Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"

EXECUTIONS, HELD, REJECTED, ATTEMPTS = "executions", "held", "rejected", "attempts"
ENDED, STEPS, CALLS, SECONDS = "runs ended", "steps", "action calls", "worker seconds"
BYTES_IN, BYTES_OUT = "bytes in", "bytes out"
MEASURES = (EXECUTIONS, HELD, REJECTED, ENDED, ATTEMPTS, STEPS, CALLS, SECONDS, BYTES_IN, BYTES_OUT)
"""A number may be of a part of one: ``runs ended: failed by api``."""
EVER, ALL = "ever", "all"
"""Instead of a month, and of an organization."""
ROUNDING = 0.01
"""Seconds that two sums of the same seconds may differ by, each rounded somewhere."""

JOURNAL = """
CREATE SCHEMA books;
CREATE TABLE books.changes (
    seq bigint GENERATED ALWAYS AS IDENTITY, xid text DEFAULT pg_current_xact_id()::text, at timestamptz DEFAULT now(),
    tenant_id text, run_id text, old text, new text);
CREATE INDEX ON books.changes (run_id);
CREATE FUNCTION books.note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO books.changes (tenant_id, run_id, old, new)
        VALUES (NEW.tenant_id, NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.status END, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER books_insert AFTER INSERT ON runs FOR EACH ROW EXECUTE FUNCTION books.note();
CREATE TRIGGER books_update AFTER UPDATE ON runs FOR EACH ROW
    WHEN ((OLD.status, OLD.attempt) IS DISTINCT FROM (NEW.status, NEW.attempt)) EXECUTE FUNCTION books.note();
"""

MONTH = "to_char(at AT TIME ZONE 'UTC', 'YYYY-MM')"

ADMITTED = """
SELECT tenant_id, run_id, at FROM books.changes c
WHERE old = 'held' AND new = 'queued' OR old IS NULL AND new = 'queued' AND NOT EXISTS (
    SELECT 1 FROM books.changes h
    WHERE h.run_id = c.run_id AND h.xid = c.xid AND h.old = 'queued' AND h.new = 'held')
"""
"""A run over a quota is stored and held in one transaction; it is admitted when it is let go."""

FROM_RUNS = {
    EXECUTIONS: f"SELECT tenant_id, {MONTH}, count(*) FROM ({ADMITTED}) a GROUP BY 1, 2",
    HELD: f"SELECT tenant_id, {MONTH}, count(*) FROM books.changes WHERE old = 'queued' AND new = 'held' GROUP BY 1, 2",
    ENDED: f"SELECT tenant_id, {MONTH.replace('at ', 'finished_at ')}, count(*) FROM runs"
    " WHERE finished_at IS NOT NULL GROUP BY 1, 2",
    ATTEMPTS: f"SELECT tenant_id, {MONTH}, count(*) FROM books.changes WHERE old = 'running'"
    " AND new IN ('waiting', 'queued', 'succeeded', 'failed') GROUP BY 1, 2",
    # What a replay was given is older than the replay, and what a cancel cut off was not finished by anybody.
    STEPS: f"SELECT s.tenant_id, {MONTH.replace('at ', 's.finished_at ')}, count(*) FROM steps s"
    " JOIN books.changes c ON c.run_id = s.run_id AND c.old IS NULL"
    " WHERE s.step_id LIKE 'do%' AND (s.item <> '' OR s.step_id <> 'do_each') AND s.finished_at >= c.at"
    " AND s.status IN ('succeeded', 'failed') AND s.error ->> 'code' IS DISTINCT FROM 'cancelled' GROUP BY 1, 2",
}

_SUMS = """
    coalesce(sum(quantity) FILTER (WHERE kind = 'execution'), 0),
    coalesce(sum(quantity) FILTER (WHERE kind = 'held'), 0),
    coalesce(sum(quantity) FILTER (WHERE kind = 'rejected'), 0),
    coalesce(sum(quantity) FILTER (WHERE kind = 'worker_seconds'), 0),
    coalesce(sum(quantity) FILTER (WHERE kind = 'action_call'), 0),
    coalesce(sum(seconds) FILTER (WHERE kind = 'worker_seconds'), 0),
    sum(bytes_in), sum(bytes_out)
"""
_SUMMED = (EXECUTIONS, HELD, REJECTED, ATTEMPTS, CALLS, SECONDS, BYTES_IN, BYTES_OUT)


@dataclass
class Book:
    """What one book states. With `whole`, what it does not mention is 0; else it says nothing of it."""

    name: str
    measures: Sequence[str]
    whole: bool = True
    stated: dict[Key, float] = field(default_factory=dict)

    def says(self, key: Key) -> float | None:
        if _whole(key[2]) not in self.measures:
            return None
        return self.stated.get(key, 0 if self.whole else None)

    def total(self, measure: str) -> float | None:
        if measure not in self.measures:
            return None
        return sum(number for key, number in self.stated.items() if _whole(key[2]) == measure)


def _whole(measure: str) -> str:
    return measure.partition(":")[0]


@dataclass(frozen=True)
class Difference:
    """One number that books do not agree about."""

    key: Key
    said: Mapping[str, float]

    def __str__(self) -> str:
        tenant, month, measure = self.key
        return f"{tenant} {month} {measure}: " + ", ".join(f"{name} {number:g}" for name, number in self.said.items())


def compare(books: Sequence[Book]) -> list[Difference]:
    """Everything that two of them state differently."""
    found = []
    for key in sorted({key for book in books for key in book.stated}):
        said = {book.name: number for book in books if (number := book.says(key)) is not None}
        if max(said.values()) - min(said.values()) > (ROUNDING if key[2] == SECONDS else 0):
            found.append(Difference(key, said))
    return found


def of_runs(connection: Connection) -> Book:
    """The table of runs and that of steps."""
    book = Book("runs", tuple(FROM_RUNS))
    for measure, statement in FROM_RUNS.items():
        for tenant, month, number in connection.execute(statement.encode()):
            book.stated[tenant, month, measure] = number
    return book


def of_ledger(connection: Connection) -> Book:
    book = _summed(connection, "ledger", f"SELECT tenant_id, {MONTH}, {_SUMS} FROM usage GROUP BY 1, 2")
    book.measures = (*_SUMMED, STEPS)
    finished = f"SELECT tenant_id, {MONTH}, count(*) FROM usage WHERE kind = 'action_call' AND outcome <> 'parked'"
    for tenant, month, number in connection.execute(f"{finished} GROUP BY 1, 2".encode()):
        book.stated[tenant, month, STEPS] = number
    return book


def of_roll_ups(connection: Connection) -> list[Book]:
    hour, month = MONTH.replace("at ", "hour "), "to_char(period, 'YYYY-MM')"
    return [
        _summed(connection, "by hour", f"SELECT tenant_id, {hour}, {_SUMS} FROM usage_hourly GROUP BY 1, 2"),
        _summed(connection, "by month", f"SELECT tenant_id, {month}, {_SUMS} FROM usage_monthly GROUP BY 1, 2"),
    ]


def of_counters(connection: Connection) -> Book:
    """Those that admit: of organizations with a limit, for the limits of now. Others are counted anew before use."""
    statement = b"""
        SELECT tenant_id, to_char(period, 'YYYY-MM'), sum(used) FROM quota_counters c JOIN (
            SELECT t.id, p.limits || t.limits AS limits, greatest(p.limits_version, t.limits_version) AS version
            FROM tenants t JOIN plans p ON p.name = t.plan) l ON l.id = c.tenant_id AND l.version = c.version
        WHERE limits ->> 'max_executions_per_month' IS NOT NULL OR limits ->> 'max_queued_runs' IS NOT NULL
        GROUP BY 1, 2
    """
    book = Book("counters", (EXECUTIONS,), whole=False)
    for tenant, month, number in connection.execute(statement):
        book.stated[tenant, month, EXECUTIONS] = int(number)
    return book


def of_usage(reports: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Book]:
    """What `GET /api/usage` answers: its totals, and the sums of what it says of each workflow and each action."""
    names = {
        EXECUTIONS: "executions",
        HELD: "held",
        REJECTED: "rejected",
        CALLS: "action_calls",
        SECONDS: "worker_seconds",
        BYTES_IN: "bytes_in",
        BYTES_OUT: "bytes_out",
    }
    page, parts = Book("usage page", tuple(names)), Book("its workflows", tuple(set(names) - {SECONDS}))
    actions = Book("its actions", (CALLS,))
    for tenant, report in reports:
        month = report["period"]
        for measure, name in names.items():
            page.stated[tenant, month, measure] = report[name]
            if measure in parts.measures:
                parts.stated[tenant, month, measure] = sum(row[name] for row in report["by_workflow"])
        actions.stated[tenant, month, CALLS] = sum(row["calls"] for row in report["by_action"])
    return [page, parts, actions]


def of_quotas(month: str, answers: Iterable[tuple[str, Mapping[str, Any]]]) -> Book:
    """What `GET /api/quotas` says is used."""
    book = Book("quotas", (EXECUTIONS,))
    for tenant, answer in answers:
        used = {item["name"]: item["used"] for item in answer["items"]}
        book.stated[tenant, month, EXECUTIONS] = used["max_executions_per_month"]
    return book


def of_invoices(name: str, invoices: Iterable[tuple[str, Mapping[str, Any]]]) -> Book:
    """Executions of the lines, whatever they cost."""
    book = Book(name, (EXECUTIONS,))
    for tenant, invoice in invoices:
        of_month = [line for line in invoice["lines"] if line["kind"] != "base"]
        book.stated[tenant, invoice["period"], EXECUTIONS] = sum(line["quantity"] for line in of_month)
    return book


def of_clients(month: str, refused: Mapping[str, int], open_: Mapping[str, int], ledger: Book) -> Book:
    """Starts that were refused, as callers heard it; nothing of callers whose refusal may have got lost on its way."""
    book = Book("clients", (REJECTED,), whole=False)
    for tenant in refused.keys() | {key[0] for key in ledger.stated}:
        said, heard = ledger.says((tenant, month, REJECTED)) or 0, refused.get(tenant, 0)
        lost = open_.get(tenant, 0)
        book.stated[tenant, month, REJECTED] = said if heard <= said <= heard + lost else heard
    return book


def of_metrics(text: str) -> Book:
    """What `/metrics` shows of all time; each organization must have a label of its own."""
    book = Book("metrics", (ENDED, SECONDS, HELD, CALLS))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, tenant = sample.labels, sample.labels.get("tenant", ALL)
            match sample.name.removeprefix("fairlane_"):
                case "runs_total":
                    key = (tenant, EVER, f"{ENDED}: {labels['status']} by {labels['trigger']}")
                case "worker_seconds_total":
                    key = (tenant, EVER, SECONDS)
                case "quota_held_total":
                    key = (tenant, EVER, HELD)
                case "action_calls_total":
                    key = (ALL, EVER, f"{CALLS}: {labels['action']} {labels['outcome']}")
                case _:
                    continue
            book.stated[key] = book.stated.get(key, 0) + sample.value
    return book


def of_all_time(connection: Connection) -> list[Book]:
    """The same as in the metrics, from the runs table and from the ledger."""
    runs, ledger = Book("runs", (ENDED,)), Book("ledger", (SECONDS, HELD, CALLS))
    for tenant, status, trigger, number in connection.execute(
        b"SELECT tenant_id, status, trigger, count(*) FROM runs WHERE finished_at IS NOT NULL GROUP BY 1, 2, 3"
    ):
        runs.stated[tenant, EVER, f"{ENDED}: {status} by {trigger}"] = number
    for action, outcome, number in connection.execute(
        b"SELECT action, outcome, sum(quantity) FROM usage WHERE kind = 'action_call' GROUP BY 1, 2"
    ):
        ledger.stated[ALL, EVER, f"{CALLS}: {action} {outcome}"] = number
    for (tenant, _, measure), number in of_ledger(connection).stated.items():
        if measure in (SECONDS, HELD):
            key = (tenant, EVER, measure)
            ledger.stated[key] = ledger.stated.get(key, 0) + number
    return [runs, ledger]


def run_by_run(connection: Connection) -> list[str]:
    """Runs that are in the ledger another number of times than they were admitted, or that were admitted twice."""
    statement = f"""
        SELECT coalesce(a.run_id, u.run_id), coalesce(a.n, 0), coalesce(u.n, 0)
        FROM (SELECT run_id, count(*) AS n FROM ({ADMITTED}) x GROUP BY 1) a
        FULL JOIN (SELECT run_id, sum(quantity) AS n FROM usage WHERE kind = 'execution' GROUP BY 1) u USING (run_id)
        WHERE a.n IS DISTINCT FROM u.n OR a.n > 1
    """
    rows = connection.execute(statement.encode()).fetchall()
    return [f"{run}: admitted {admitted} times, in the ledger {entered} times" for run, admitted, entered in rows]


def states(connection: Connection) -> Counter[str]:
    rows: Any = connection.execute("SELECT status, count(*) FROM runs GROUP BY 1").fetchall()
    return Counter(dict(rows))


def _summed(connection: Connection, name: str, statement: str) -> Book:
    book = Book(name, _SUMMED)
    for tenant, month, *numbers in connection.execute(statement.encode()):
        book.stated |= {(tenant, month, measure): float(n) for measure, n in zip(_SUMMED, numbers, strict=True)}
    return book
