-- name: start_run
-- Why one statement: admission, insert and dedupe cost one round trip; no row means look closer (runs.start).
INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, priority, idempotency_key, replay_of,
                  wait_reason)
SELECT tenant_id, :run_id, id, coalesce(:version::int, version), :status, :trigger, :input::jsonb, :priority,
       :idempotency_key, :replay_of, :wait_reason
FROM workflows
WHERE tenant_id = :tenant_id AND id = :workflow_id AND is_active AND deleted_at IS NULL
ON CONFLICT (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id, workflow_id, version, status, trigger, priority, attempt, replay_of, queued_at, wait_reason;

-- name: begin_run
-- Why compare-and-set: the attempt is the fencing token; a run in a living worker's hands is not taken from it.
UPDATE runs SET
    status = 'running',
    attempt = attempt + 1,
    crashes = crashes + (status = 'running')::int,
    started_at = coalesce(started_at, now()),
    heartbeat_at = now()
WHERE tenant_id = :tenant_id AND id = :run_id
  AND (status = 'queued' OR (status = 'running' AND heartbeat_at < now() - :stale_seconds * interval '1 second'))
RETURNING id, workflow_id, version, trigger, input, attempt, crashes, priority, replay_of, queued_at, started_at;

-- name: finished_steps
-- Why: what earlier attempts finished is never run again; the count bounds the log over all attempts.
SELECT step_id, item, status, attempt, output, error,
       (SELECT count(*) FROM execution_logs l WHERE l.tenant_id = :tenant_id AND l.run_id = :run_id) AS lines
FROM steps
WHERE tenant_id = :tenant_id AND run_id = :run_id;

-- name: save_progress
-- Why one statement: steps, log lines and ledger of a checkpoint, all or nothing, only while the attempt still holds.
WITH run AS (
    UPDATE runs SET
        status = :status,
        output = coalesce(:output::jsonb, output),
        error = :error::jsonb,
        wait_reason = :wait_reason,
        wake_at = now() + :wake_seconds::float8 * interval '1 second',
        heartbeat_at = now(),
        finished_at = CASE WHEN :terminal::boolean THEN now() END
    WHERE tenant_id = :tenant_id AND id = :run_id AND attempt = :attempt AND status = 'running'
    RETURNING tenant_id, id, workflow_id
), saved AS (
    INSERT INTO steps (tenant_id, run_id, step_id, item, status, attempt, output, error, started_at, finished_at)
    SELECT run.tenant_id, run.id, s.step_id, s.item, s.status, s.attempt, s.output, s.error, s.started_at, s.finished_at
    FROM run, jsonb_to_recordset(:steps::jsonb) AS s (
        step_id text, item text, status text, attempt int, output jsonb, error jsonb,
        started_at timestamptz, finished_at timestamptz)
    ON CONFLICT (tenant_id, run_id, step_id, item) DO UPDATE SET
        status = excluded.status, attempt = excluded.attempt, output = excluded.output, error = excluded.error,
        finished_at = excluded.finished_at
), lines AS (
    INSERT INTO execution_logs (tenant_id, run_id, step_id, level, message, data, at)
    SELECT run.tenant_id, run.id, l.step_id, l.level, l.message, l.data, l.at
    FROM run, jsonb_to_recordset(:lines::jsonb) AS l (
        step_id text, level text, message text, data jsonb, at timestamptz)
), ledger AS (
    INSERT INTO usage (tenant_id, kind, run_id, workflow_id, action, quantity, seconds)
    SELECT run.tenant_id, u.kind, run.id, run.workflow_id, u.action, u.quantity, u.seconds
    FROM run, jsonb_to_recordset(:usage::jsonb) AS u (kind text, action text, quantity int, seconds float8)
)
SELECT id FROM run;

-- name: heartbeat
-- Why: one statement per worker process for all it has in hand; what does not come back was lost or cancelled.
UPDATE runs r SET heartbeat_at = now()
FROM unnest(:tenant_ids::text[], :run_ids::text[], :attempts::int[]) AS held (tenant_id, run_id, attempt)
WHERE r.tenant_id = held.tenant_id AND r.id = held.run_id AND r.attempt = held.attempt AND r.status = 'running'
RETURNING r.id;

-- name: workflow_version
-- Why: the worker's cache misses once per version; a version never changes.
SELECT w.name, v.definition
FROM workflow_versions v JOIN workflows w ON w.tenant_id = v.tenant_id AND w.id = v.workflow_id
WHERE v.tenant_id = :tenant_id AND v.workflow_id = :workflow_id AND v.version = :version;

-- name: credential_for_step
-- Why ciphertext and key in one statement: rotation may replace both between two.
SELECT c.id, c.name, c.service_name AS service, c.ciphertext, c.key_version, c.broken_reason, k.master_key_id, k.wrapped
FROM credentials c
LEFT JOIN data_keys k ON k.tenant_id = c.tenant_id AND k.version = c.key_version
WHERE (:name::text IS NOT NULL AND c.name = :name) OR (:name::text IS NULL AND c.service_name = :service)
ORDER BY c.id
LIMIT 2;

-- name: due_triggers
-- Why SKIP LOCKED: any number of beats take different rows, and a row is advanced in the transaction that fires it.
SELECT t.tenant_id, t.workflow_id, t.type, t.config, t.next_fire_at, t.last_fired_at, now() AS now
FROM triggers t
WHERE t.next_fire_at <= now()
ORDER BY t.next_fire_at
LIMIT :limit
FOR UPDATE SKIP LOCKED;

-- name: overdue_runs
-- Why: what the sweeper asks the broker about; queued and not begun, or begun and silent.
SELECT tenant_id, id, workflow_id, priority, status, attempt
FROM runs
WHERE finished_at IS NULL
  AND ((status = 'queued' AND queued_at < now() - :queued_seconds * interval '1 second')
    OR (status = 'running' AND heartbeat_at < now() - :silent_seconds * interval '1 second'))
  AND id > :after
ORDER BY id
LIMIT :limit;

-- name: wake_runs
-- Why SKIP LOCKED: any number of sweepers wake different runs.
UPDATE runs r SET status = 'queued', wait_reason = NULL, wake_at = NULL
FROM (
    SELECT tenant_id, id FROM runs
    WHERE finished_at IS NULL AND status = 'waiting' AND wake_at <= now()
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
) due
WHERE r.tenant_id = due.tenant_id AND r.id = due.id
RETURNING r.tenant_id, r.id, r.workflow_id, r.priority, r.status, r.attempt;
