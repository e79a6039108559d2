"""The old log: each row becomes a run that has ended, and the one line of it, at the time of the row.

A run's id is made of the time and of the row's id, so that runs are listed in the order of their times; the row's id
and status stand in the run's input and in the line. No usage is booked, and the rows of ``logs`` stay.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from migrations.legacy.findings import Progress

TRIGGER = "legacy"
PAGES_PER_BATCH = 500
_RUN_ID = """'run_' || lpad(to_hex(greatest(0, (extract(epoch FROM l.executed_at) * 1000)::bigint)), 12, '0')
    || '7' || substr(md5(l.id), 1, 3) || '8' || substr(md5(l.id), 4, 15)"""
_BATCH = "l.ctid >= CAST(:first AS tid) AND l.ctid < CAST(:last AS tid)"
_RUNS = text(
    f"""INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, error, queued_at, started_at,
        finished_at)
    SELECT l.tenant_id, {_RUN_ID}, l.workflow_id, w.version,
        CASE l.status WHEN 'success' THEN 'succeeded' ELSE 'failed' END, '{TRIGGER}',
        jsonb_build_object('log_id', l.id, 'status', l.status),
        CASE WHEN l.status <> 'success' THEN jsonb_build_object('code', 'legacy_failed', 'message',
            coalesce(l.message, ''), 'step', NULL) END,
        l.executed_at, l.executed_at, l.executed_at
    FROM logs l JOIN workflows w ON w.tenant_id = l.tenant_id AND w.id = l.workflow_id WHERE {_BATCH}"""
)
_LINES = text(
    f"""INSERT INTO execution_logs (tenant_id, run_id, level, message, data, at)
    SELECT l.tenant_id, {_RUN_ID}, CASE l.status WHEN 'success' THEN 'info' ELSE 'error' END, coalesce(l.message, ''),
        jsonb_build_object('log_id', l.id, 'status', l.status), l.executed_at
    FROM logs l WHERE {_BATCH}"""
)


def convert(connection: Connection, progress: Progress) -> None:
    """Convert all rows of ``logs``, some pages at a time. The system role is set."""
    size = text("SELECT pg_relation_size('logs') / current_setting('block_size')::int")
    pages = int(connection.execute(size).scalar_one())
    for first in range(0, pages, PAGES_PER_BATCH):
        last = min(first + PAGES_PER_BATCH, pages)
        batch = {"first": f"({first},0)", "last": f"({last},0)"}
        connection.execute(_RUNS, batch)
        connection.execute(_LINES, batch)
        progress("Converting logs", last, pages)
