-- name: start_run
-- Why one statement: insert, dedupe, admission and ledger cost one round trip; no row means look closer (runs.start).
-- Why admitted after the insert: what was there before by its key takes nothing of the month.
WITH tenant AS MATERIALIZED (
    SELECT t.id, lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane,
           ((p.limits || t.limits) ->> 'max_run_seconds')::int AS max_seconds,
           ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint AS monthly,
           ((p.limits || t.limits) ->> 'max_queued_runs')::bigint AS waiting,
           greatest(p.limits_version, t.limits_version) AS version,
           ((p.limits || t.limits) ->> 'max_payload_bytes')::bigint AS payload,
           coalesce((p.limits || t.limits) ->> 'over_quota' = 'reject', false) AS rejects
    FROM tenants t JOIN plans p ON p.name = t.plan
    WHERE t.id = :tenant_id AND t.status = 'active'
), new AS (
    INSERT INTO runs (tenant_id, id, workflow_id, version, status, trigger, input, priority, idempotency_key,
                      replay_of, parent_run_id, depth, max_seconds, wait_reason)
    SELECT w.tenant_id, :run_id, w.id, coalesce(:version::int, w.version), :status, :trigger, :input::jsonb, :priority,
           :idempotency_key, :replay_of, :parent_run_id, :depth, tenant.max_seconds, :wait_reason
    FROM workflows w JOIN tenant ON tenant.id = w.tenant_id
    WHERE w.tenant_id = :tenant_id AND w.id = :workflow_id AND w.is_active AND w.deleted_at IS NULL
      AND (tenant.payload IS NULL OR :input_bytes::bigint <= tenant.payload)
    ON CONFLICT (tenant_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id, workflow_id, version, status, trigger, priority, attempt, replay_of, queued_at, wait_reason
), admission AS MATERIALIZED (
    SELECT tenant.lane, tenant.rejects, CASE WHEN new.status = 'queued' THEN
        admit(tenant.id, new.id, coalesce(:at::timestamptz, now()), tenant.monthly, tenant.waiting,
              tenant.version, tenant.rejects AND :outside::boolean, :outside::boolean) END AS verdict
    FROM new, tenant
), ledger AS (
    INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id)
    SELECT :tenant_id, coalesce(:at::timestamptz, now()), 'execution', new.id, new.workflow_id
    FROM new, admission WHERE admission.verdict = 'admitted'
)
SELECT new.*, admission.lane, admission.rejects, admission.verdict FROM new, admission;

-- name: hold_run
-- Why apart from start_run: few starts are over a quota. Why the limit is looked up for `line`: behind others that are
-- held nobody has asked which it is. Where neither is used up the run is held for those others alone. What counters say
-- may be too little, never too much.
WITH run AS (
    UPDATE runs SET status = 'held', wait_reason = 'quota'
    WHERE tenant_id = :tenant_id AND id = :run_id AND status = 'queued'
    RETURNING tenant_id, id, workflow_id, status, wait_reason
), tenant AS (
    SELECT t.id, ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint AS monthly,
           ((p.limits || t.limits) ->> 'max_queued_runs')::bigint AS waiting
    FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = :tenant_id
), ledger AS (
    INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id, outcome)
    SELECT run.tenant_id, coalesce(:at::timestamptz, now()), 'held', run.id, run.workflow_id, CASE
        WHEN :verdict::text = 'executions' THEN 'max_executions_per_month'
        WHEN :verdict::text = 'queue' THEN 'max_queued_runs'
        WHEN tenant.monthly <= (
            SELECT sum(c.used) FROM quota_counters c
            WHERE c.tenant_id = tenant.id
              AND c.period = date_trunc('month', coalesce(:at::timestamptz, now()) AT TIME ZONE 'UTC')::date
        ) THEN 'max_executions_per_month'
        WHEN tenant.waiting <= (
            SELECT count(*) FROM (
                SELECT 1 FROM runs r
                WHERE r.tenant_id = tenant.id AND r.finished_at IS NULL AND r.wait_reason IS NULL AND r.priority >= 0
                  AND r.status = 'queued' AND r.id <> run.id
                LIMIT tenant.waiting) waiting
        ) THEN 'max_queued_runs'
        ELSE 'line' END
    FROM run, tenant
)
SELECT status, wait_reason FROM run;

-- name: begin_run
-- Why compare-and-set: the attempt is the fencing token; not what a living worker has, nor what a suspended tenant left.
UPDATE runs SET
    status = 'running',
    attempt = attempt + 1,
    checkpoint = 0,
    crashes = crashes + (status = 'running')::int,
    started_at = coalesce(started_at, now()),
    heartbeat_at = now(),
    wake_at = NULL,
    deadline_at = CASE WHEN status = 'running' THEN deadline_at
                       ELSE coalesce(deadline_at + (now() - heartbeat_at), now() + max_seconds * interval '1 second')
                  END
WHERE tenant_id = :tenant_id AND id = :run_id
  AND (status = 'queued' OR (status = 'running' AND heartbeat_at < now() - :stale_seconds * interval '1 second'))
  AND EXISTS (SELECT 1 FROM tenants t WHERE t.id = :tenant_id AND t.status = 'active')
RETURNING id, workflow_id, version, trigger, input, attempt, crashes, priority, replay_of, queued_at, started_at,
          parent_run_id, depth, concurrency_key, max_seconds,
          (SELECT ((p.limits || t.limits) ->> 'max_payload_bytes')::bigint
           FROM tenants t JOIN plans p ON p.name = t.plan WHERE t.id = :tenant_id) AS max_payload,
          extract(epoch FROM deadline_at - now())::float8 AS seconds_left,
          extract(epoch FROM now() - started_at)::float8 AS age, now() AS now;

-- name: finished_steps
-- Why: what earlier attempts finished is never run again; the count bounds the log over all attempts.
-- Why cut: of a step's items at most a mebibyte of outputs is kept in memory (engine.progress); their rows have them whole.
SELECT step_id, item, status, attempt, error, started_at,
       CASE WHEN item = '' OR output IS NULL
                 OR sum(octet_length(output::text)) OVER (PARTITION BY step_id, item = '' ORDER BY length(item), item)
                    <= 1048576
            THEN output ELSE '{"cut": true}' END AS output, wait_reason, signal,
       extract(epoch FROM wake_at - now())::float8 AS wake_seconds,
       (SELECT count(*) FROM execution_logs l WHERE l.tenant_id = :tenant_id AND l.run_id = :run_id) AS lines
FROM steps
WHERE tenant_id = :tenant_id AND run_id = :run_id;

-- name: save_progress
-- Why one statement: steps, log lines and ledger of a checkpoint, all or nothing, only while the attempt still holds.
-- Why numbered: one whose answer was lost may be sent again, and is stored once.
-- Why wake_at may be there already: what came for a run that was still running (`signal_run`) wakes it at once.
-- Why begins: no effect of a suspended tenant begins, however short ago it was suspended; what has happened is stored.
WITH run AS (
    UPDATE runs SET
        status = :status,
        checkpoint = coalesce(:checkpoint::int, checkpoint),
        output = coalesce(:output::jsonb, output),
        error = :error::jsonb,
        wait_reason = :wait_reason,
        wake_at = CASE :status::text WHEN 'running' THEN wake_at
                      WHEN 'waiting' THEN least(wake_at, now() + :wake_seconds::float8 * interval '1 second') END,
        heartbeat_at = now(),
        finished_at = CASE WHEN :terminal::boolean THEN now() END
    WHERE tenant_id = :tenant_id AND id = :run_id AND attempt = :attempt AND status = 'running'
      AND (:checkpoint::int IS NULL OR checkpoint = :checkpoint::int - 1)
      AND (NOT :begins::boolean
        OR EXISTS (SELECT 1 FROM tenants t WHERE t.id = :tenant_id AND t.status = 'active'))
    RETURNING tenant_id, id, workflow_id
), saved AS (
    INSERT INTO steps (tenant_id, run_id, step_id, item, status, attempt, output, error, started_at, finished_at,
                       wait_reason, wake_at)
    SELECT run.tenant_id, run.id, s.step_id, s.item, s.status, s.attempt, s.output, s.error, s.started_at,
           s.finished_at, s.wait_reason, now() + s.wake_seconds * interval '1 second'
    FROM run, jsonb_to_recordset(:steps::jsonb) AS s (
        step_id text, item text, status text, attempt int, output jsonb, error jsonb,
        started_at timestamptz, finished_at timestamptz, wait_reason text, wake_seconds float8)
    ON CONFLICT (tenant_id, run_id, step_id, item) DO UPDATE SET
        status = excluded.status, attempt = excluded.attempt, output = excluded.output, error = excluded.error,
        finished_at = excluded.finished_at, wait_reason = excluded.wait_reason, wake_at = excluded.wake_at,
        signal = NULL, seq = excluded.seq
), lines AS (
    INSERT INTO execution_logs (tenant_id, run_id, step_id, level, message, data, at)
    SELECT run.tenant_id, run.id, l.step_id, l.level, l.message, l.data, l.at
    FROM run, jsonb_to_recordset(:lines::jsonb) AS l (
        step_id text, level text, message text, data jsonb, at timestamptz)
), ledger AS (
    INSERT INTO usage (tenant_id, kind, run_id, workflow_id, action, quantity, seconds, outcome, bytes_in, bytes_out)
    SELECT run.tenant_id, u.kind, run.id, run.workflow_id, u.action, u.quantity, u.seconds, u.outcome,
           coalesce(u.bytes_in, 0), coalesce(u.bytes_out, 0)
    FROM run, jsonb_to_recordset(:usage::jsonb) AS u (
        kind text, action text, quantity int, seconds float8, outcome text, bytes_in bigint, bytes_out bigint)
)
SELECT id FROM run;

-- name: cancel_steps
-- Why: of a run that was just cancelled, so nobody can write steps any more. What was in hand may or may not have happened.
WITH ended AS (
    UPDATE steps SET
        status = 'failed', error = jsonb_build_object('code', 'cancelled', 'message', :why::text, 'step', step_id),
        finished_at = now(), wait_reason = NULL, wake_at = NULL, seq = DEFAULT
    WHERE tenant_id = :tenant_id AND run_id = :run_id AND status = 'running'
)
INSERT INTO execution_logs (tenant_id, run_id, level, message) VALUES (:tenant_id, :run_id, 'warning', :why);

-- name: heartbeat
-- Why: one statement per worker process for all it has in hand; what does not come back was lost or cancelled, or its
-- tenant is suspended.
UPDATE runs r SET heartbeat_at = now()
FROM unnest(:tenant_ids::text[], :run_ids::text[], :attempts::int[]) AS held (tenant_id, run_id, attempt)
JOIN tenants t ON t.id = held.tenant_id AND t.status = 'active'
WHERE r.tenant_id = held.tenant_id AND r.id = held.run_id AND r.attempt = held.attempt AND r.status = 'running'
RETURNING r.id;

-- name: lost_runs
-- Why: between heartbeats, one look per process and second, so that a cancel or a suspension is seen soon.
SELECT held.run_id AS id
FROM unnest(:tenant_ids::text[], :run_ids::text[], :attempts::int[]) AS held (tenant_id, run_id, attempt)
LEFT JOIN runs r
    ON r.tenant_id = held.tenant_id AND r.id = held.run_id AND r.attempt = held.attempt AND r.status = 'running'
LEFT JOIN tenants t ON t.id = held.tenant_id AND t.status = 'active'
WHERE r.id IS NULL OR t.id IS NULL;

-- name: watched_runs
-- Why: a few times a second, each process of the API asks this once for all runs that are watched there.
SELECT r.tenant_id, r.id, r.status, r.attempt, r.checkpoint
FROM unnest(:tenant_ids::text[], :run_ids::text[]) AS watched (tenant_id, run_id)
JOIN runs r ON r.tenant_id = watched.tenant_id AND r.id = watched.run_id;

-- name: signal_run
-- Why both states: what a run waits for may come before it has been put aside; then it wakes as soon as it is.
UPDATE runs r SET
    status = CASE r.status WHEN 'waiting' THEN 'queued' ELSE r.status END,
    wait_reason = NULL,
    wake_at = CASE r.status WHEN 'running' THEN now() END
FROM tenants t JOIN plans p ON p.name = t.plan
WHERE t.id = :tenant_id AND r.tenant_id = t.id AND r.id = :run_id AND r.status IN ('waiting', 'running')
  AND r.wait_reason IS DISTINCT FROM 'concurrency'
RETURNING r.id, r.tenant_id, r.workflow_id, r.priority, r.status, r.attempt,
          lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane;

-- name: places
-- Why counted no further than any limit goes: very many may wait, and each new run looks.
SELECT id, 0 AS waiting FROM runs
WHERE tenant_id = :tenant_id AND workflow_id = :workflow_id AND concurrency_key = :key AND finished_at IS NULL
  AND wait_reason IS DISTINCT FROM 'concurrency' AND id <> :but
UNION ALL
SELECT NULL, count(*) FROM (
    SELECT 1 FROM runs
    WHERE tenant_id = :tenant_id AND workflow_id = :workflow_id AND concurrency_key = :key
      AND wait_reason = 'concurrency' AND id <> :but
    LIMIT 1000) line
ORDER BY id;

-- name: hand_over
-- Why counted: whatever ended or woke, as many wait on as must; the oldest goes first. Asked under a lock of the key.
WITH under_way AS (
    SELECT count(*) AS n FROM runs
    WHERE tenant_id = :tenant_id AND workflow_id = :workflow_id AND concurrency_key = :key AND finished_at IS NULL
      AND wait_reason IS DISTINCT FROM 'concurrency' AND id <> :ending
), line AS (
    SELECT id, concurrency_limit, row_number() OVER (ORDER BY id) AS place FROM (
        SELECT id, concurrency_limit FROM runs
        WHERE tenant_id = :tenant_id AND workflow_id = :workflow_id AND concurrency_key = :key
          AND wait_reason = 'concurrency' AND id <> :ending
        ORDER BY id
        LIMIT 1000) oldest
)
UPDATE runs r SET status = 'queued', wait_reason = NULL, wake_at = NULL
FROM tenants t JOIN plans p ON p.name = t.plan
WHERE t.id = :tenant_id AND r.tenant_id = t.id AND r.id IN (
    SELECT line.id FROM line, under_way WHERE line.place + under_way.n <= line.concurrency_limit)
RETURNING r.id, r.tenant_id, r.workflow_id, r.priority, r.status, r.attempt,
          lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane;

-- name: workflow_version
-- Why: the worker's cache misses once per version; a version never changes.
SELECT w.name, v.definition
FROM workflow_versions v JOIN workflows w ON w.tenant_id = v.tenant_id AND w.id = v.workflow_id
WHERE v.tenant_id = :tenant_id AND v.workflow_id = :workflow_id AND v.version = :version;

-- name: credential_for_step
-- Why ciphertext and key in one statement: rotation may replace both between two. Why it also writes: what a step is
-- given is recorded in the transaction that gives it, and costs no round trip.
WITH found AS (
    SELECT c.id, c.name, c.service_name AS service, c.ciphertext, c.key_version, c.broken_reason, k.master_key_id,
           k.wrapped
    FROM credentials c
    LEFT JOIN data_keys k ON k.tenant_id = c.tenant_id AND k.version = c.key_version
    WHERE (:name::text IS NOT NULL AND c.name = :name) OR (:name::text IS NULL AND c.service_name = :service)
    ORDER BY c.id
    LIMIT 2
), recorded AS (
    INSERT INTO decryptions (tenant_id, credential_id, run_id, step_id, attempt)
    SELECT :tenant_id, id, :run_id, :step_id, :attempt FROM found
    WHERE (SELECT count(*) FROM found) = 1 AND service = :service
)
SELECT * FROM found ORDER BY id;

-- name: due_triggers
-- Why turns: of a herd in one second every organization fires its first before any fires its second. Those of one turn
-- come by how long they have been due, and where that is the same by chance, so that nobody is the last each time.
SELECT due.tenant_id, due.workflow_id
FROM (
    SELECT longest.*, row_number() OVER (PARTITION BY longest.tenant_id ORDER BY longest.next_fire_at) AS turn
    FROM (
        SELECT t.tenant_id, t.workflow_id, t.next_fire_at
        FROM triggers t JOIN tenants o ON o.id = t.tenant_id AND o.status = 'active'
        WHERE t.next_fire_at <= now()
        ORDER BY t.next_fire_at
        LIMIT :window
    ) longest
) due
ORDER BY due.turn, due.next_fire_at, random()
LIMIT :limit;

-- name: lock_due_triggers
-- Why SKIP LOCKED: any number of beats take different rows, and a row is advanced in the transaction that fires it.
-- Why an interval of nothing: rows are found by their keys. By the index of the time each batch would read a whole herd.
SELECT t.tenant_id, t.workflow_id, t.type, t.config, t.next_fire_at, t.last_fired_at, now() AS now,
       lane_config(p.limits || o.limits, greatest(p.limits_version, o.limits_version)) AS lane
FROM unnest(:tenant_ids::text[], :workflow_ids::text[]) AS wanted (tenant_id, workflow_id)
JOIN triggers t ON t.tenant_id = wanted.tenant_id AND t.workflow_id = wanted.workflow_id
JOIN tenants o ON o.id = t.tenant_id AND o.status = 'active' JOIN plans p ON p.name = o.plan
WHERE t.next_fire_at + interval '0' <= now()
FOR UPDATE OF t SKIP LOCKED;

-- name: overdue_runs
-- Why: what the sweeper asks the broker about; queued and not begun, or begun and silent.
SELECT r.tenant_id, r.id, r.workflow_id, r.priority, r.status, r.attempt,
       lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane
FROM runs r JOIN tenants t ON t.id = r.tenant_id AND t.status = 'active' JOIN plans p ON p.name = t.plan
WHERE r.finished_at IS NULL AND r.wait_reason IS NULL
  AND ((r.status = 'queued' AND r.queued_at <= now() - :queued_seconds * interval '1 second')
    OR (r.status = 'running' AND r.heartbeat_at < now() - :silent_seconds * interval '1 second'))
  AND r.id > :after
ORDER BY r.id
LIMIT :limit;

-- name: wake_runs
-- Why SKIP LOCKED: any number of sweepers wake different runs. Those that waited longest come first.
UPDATE runs r SET status = 'queued', wait_reason = NULL, wake_at = NULL
FROM (
    SELECT w.tenant_id, w.id, w.wake_at,
           lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane
    FROM runs w JOIN tenants t ON t.id = w.tenant_id AND t.status = 'active' JOIN plans p ON p.name = t.plan
    WHERE w.wake_at <= now() AND w.status = 'waiting'
    ORDER BY w.wake_at
    LIMIT :limit
    FOR UPDATE OF w SKIP LOCKED
) due
WHERE r.tenant_id = due.tenant_id AND r.id = due.id
RETURNING r.tenant_id, r.id, r.workflow_id, r.priority, r.status, r.attempt, due.lane, due.wake_at AS due_at;

-- name: stranded_runs
-- Why: whoever waits for other runs is woken by their end; should that ever fail, the sweeper finds it here.
SELECT w.tenant_id, w.id, w.wait_reason, w.workflow_id, w.concurrency_key, NOT EXISTS (
    SELECT 1 FROM runs c
    WHERE w.wait_reason = 'workflow' AND c.parent_run_id = w.id AND c.tenant_id = w.tenant_id AND c.finished_at IS NULL
) AND NOT EXISTS (
    SELECT 1 FROM runs h
    WHERE w.wait_reason = 'concurrency' AND h.tenant_id = w.tenant_id AND h.workflow_id = w.workflow_id
      AND h.concurrency_key = w.concurrency_key AND h.finished_at IS NULL
      AND h.wait_reason IS DISTINCT FROM 'concurrency'
) AS stranded
FROM runs w
WHERE w.wait_reason IN ('workflow', 'concurrency') AND w.id > :after
ORDER BY w.id
LIMIT :limit;

-- name: caller_by_user
-- Why outer joins: no row means no such user, a row without a role means no member; the caller is told which.
SELECT u.email, u.token_version, m.role, t.status AS tenant_status, t.name AS tenant_name
FROM users u
LEFT JOIN tenants t ON t.id = :tenant_id AND t.status <> 'deleted'
LEFT JOIN memberships m ON m.tenant_id = t.id AND m.user_id = u.id
WHERE u.id = :user_id;

-- name: caller_by_key
-- Why one statement: every request with a key makes it, and once a minute it also notes that the key is in use.
WITH found AS (
    SELECT k.id, k.tenant_id, k.scopes, k.last_used_at, t.status AS tenant_status, t.name AS tenant_name
    FROM api_keys k JOIN tenants t ON t.id = k.tenant_id AND t.status <> 'deleted'
    WHERE k.secret_hash = :secret_hash AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
), used AS (
    UPDATE api_keys k SET last_used_at = now() FROM found
    WHERE k.id = found.id AND (found.last_used_at IS NULL OR found.last_used_at < now() - interval '1 minute')
)
SELECT id, tenant_id, scopes, tenant_status, tenant_name FROM found;

-- name: advance_triggers
-- Why one statement: a batch of due triggers is moved on in the transaction that fired it.
UPDATE triggers t SET
    next_fire_at = d.next_fire_at,
    last_fired_at = coalesce(d.last_fired_at, t.last_fired_at),
    paused_reason = d.paused_reason
FROM unnest(:tenant_ids::text[], :workflow_ids::text[], :next_fire_ats::timestamptz[], :last_fired_ats::timestamptz[],
            :paused_reasons::text[]) AS d (tenant_id, workflow_id, next_fire_at, last_fired_at, paused_reason)
WHERE t.tenant_id = d.tenant_id AND t.workflow_id = d.workflow_id;

-- name: webhook_target
-- Why one statement: all that a request must be checked against, the key of its secret included.
SELECT w.id, w.is_active, w.inactive_reason, t.type, t.config -> 'sealed' AS sealed, k.master_key_id, k.wrapped
FROM workflows w
LEFT JOIN triggers t ON t.tenant_id = w.tenant_id AND t.workflow_id = w.id
LEFT JOIN data_keys k ON k.tenant_id = t.tenant_id AND k.version = (t.config -> 'sealed' ->> 'key_version')::int
WHERE w.tenant_id = :tenant_id AND w.id = :workflow_id AND w.deleted_at IS NULL;

-- name: remember_items
-- Why one statement: of the items that a poll found, those never seen before; the others are listed still, noted daily.
WITH listed AS (
    SELECT item_id FROM unnest(:item_ids::text[]) AS item_id
), noted AS (
    UPDATE poll_items p SET seen_at = now()
    FROM listed
    WHERE p.tenant_id = :tenant_id AND p.workflow_id = :workflow_id AND p.item_id = listed.item_id
      AND p.seen_at < now() - interval '1 day'
)
INSERT INTO poll_items (tenant_id, workflow_id, item_id)
SELECT :tenant_id, :workflow_id, item_id FROM listed
ON CONFLICT DO NOTHING
RETURNING item_id;

-- name: tenants_with_held
-- Why from tenant to tenant: one may have a million held runs. Whose month is known to be used up is passed over.
WITH RECURSIVE holder AS (
    (SELECT tenant_id FROM runs WHERE wait_reason = 'quota' ORDER BY tenant_id LIMIT 1)
    UNION ALL
    SELECT (SELECT r.tenant_id FROM runs r WHERE r.wait_reason = 'quota' AND r.tenant_id > holder.tenant_id
            ORDER BY r.tenant_id LIMIT 1)
    FROM holder WHERE holder.tenant_id IS NOT NULL
)
SELECT t.id AS tenant_id
FROM holder JOIN tenants t ON t.id = holder.tenant_id AND t.status = 'active' JOIN plans p ON p.name = t.plan
WHERE NOT EXISTS (
    SELECT 1 FROM quota_counters c
    WHERE c.tenant_id = t.id
      AND c.period = date_trunc('month', coalesce(:at::timestamptz, now()) AT TIME ZONE 'UTC')::date
      AND c.monthly = ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint
    HAVING sum(c.used) >= min(c.monthly));

-- name: release_held
-- Why one statement: what fits is counted, queued, entered in the ledger, and comes back with its message's lane.
-- Why room is looked for before: where there is none this locks nothing, and else no more than may go. `quota_take` decides.
WITH tenant AS MATERIALIZED (
    SELECT t.id, lane_config(p.limits || t.limits, greatest(p.limits_version, t.limits_version)) AS lane,
           ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint AS monthly,
           ((p.limits || t.limits) ->> 'max_queued_runs')::bigint AS waiting,
           greatest(p.limits_version, t.limits_version) AS version
    FROM tenants t JOIN plans p ON p.name = t.plan
    WHERE t.id = :tenant_id AND t.status = 'active'
), backlog AS (
    SELECT 1 FROM runs r
    WHERE r.tenant_id = :tenant_id AND r.finished_at IS NULL AND r.wait_reason IS NULL AND r.priority >= 0
      AND r.status = 'queued'
    LIMIT (SELECT waiting FROM tenant)
), room AS MATERIALIZED (
    SELECT greatest(0, least(
        :limit::bigint,
        CASE WHEN tenant.waiting IS NOT NULL THEN tenant.waiting - (SELECT count(*) FROM backlog) END,
        tenant.monthly - (
            SELECT CASE WHEN bool_and(c.monthly = tenant.monthly) THEN sum(c.used)::bigint END FROM quota_counters c
            WHERE c.tenant_id = :tenant_id
              AND c.period = date_trunc('month', coalesce(:at::timestamptz, now()) AT TIME ZONE 'UTC')::date))) AS n
    FROM tenant
), line AS MATERIALIZED (
    SELECT id FROM runs WHERE tenant_id = :tenant_id AND wait_reason = 'quota' AND status = 'held'
    ORDER BY id LIMIT coalesce((SELECT n FROM room), 0) FOR UPDATE SKIP LOCKED
), fits AS MATERIALIZED (
    SELECT tenant.lane, CASE WHEN wanted.n = 0 THEN 0 ELSE (
        SELECT q.taken FROM quota_take(tenant.id, '', coalesce(:at::timestamptz, now()), tenant.monthly,
                                       tenant.waiting, tenant.version, wanted.n, true) q) END AS n
    FROM tenant, (SELECT count(*) AS n FROM line) wanted
), released AS (
    UPDATE runs r SET status = 'queued', wait_reason = NULL, queued_at = now()
    WHERE r.tenant_id = :tenant_id
      AND r.id IN (SELECT id FROM line ORDER BY id LIMIT coalesce((SELECT n FROM fits), 0))
    RETURNING r.id, r.workflow_id, r.priority, r.attempt
), ledger AS (
    INSERT INTO usage (tenant_id, at, kind, run_id, workflow_id)
    SELECT :tenant_id, coalesce(:at::timestamptz, now()), 'execution', id, workflow_id FROM released
)
SELECT released.*, fits.lane FROM released, fits;

-- name: stale_counters
-- Why: those that the next start would count anew, also where it has none yet; looked for every few seconds, so in the
-- ledger only by its index. Whoever has no monthly limit needs no count.
SELECT t.id AS tenant_id
FROM tenants t JOIN plans p ON p.name = t.plan
CROSS JOIN LATERAL (SELECT ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint AS monthly) kept
LEFT JOIN quota_counters c ON c.tenant_id = t.id AND c.period = :period AND c.slot = 0
WHERE t.status = 'active' AND kept.monthly IS NOT NULL
  AND CASE WHEN c.tenant_id IS NOT NULL
      THEN c.monthly IS DISTINCT FROM kept.monthly OR c.version <> greatest(p.limits_version, t.limits_version)
      ELSE (SELECT 1 FROM usage u
            WHERE u.tenant_id = t.id AND u.kind = 'execution' AND u.at >= :start AND u.at < :end LIMIT 1) IS NOT NULL
      END
ORDER BY t.id
LIMIT :limit;

-- name: recount
-- Why nothing wanted: only the count is.
SELECT q.taken
FROM tenants t JOIN plans p ON p.name = t.plan,
     LATERAL quota_take(t.id, '', :at::timestamptz, ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint,
                        ((p.limits || t.limits) ->> 'max_queued_runs')::bigint,
                        greatest(p.limits_version, t.limits_version), 0, false) q
WHERE t.id = :tenant_id AND t.status = 'active';

-- name: credential_uses
-- Why: before a credential goes; only current versions count, and a step that names none counts while it is the only one.
SELECT w.id, w.name
FROM workflows w
JOIN workflow_versions v ON v.tenant_id = w.tenant_id AND v.workflow_id = w.id AND v.version = w.version
WHERE w.deleted_at IS NULL AND EXISTS (
    SELECT 1 FROM jsonb_array_elements(v.definition -> 'steps') step
    WHERE step ->> 'credential' = :name
       OR (step ->> 'credential' IS NULL AND step ->> 'action' = ANY (:actions::text[])
           AND (SELECT count(*) FROM credentials c WHERE c.service_name = :service) = 1)
)
ORDER BY w.name, w.id
LIMIT 20;

-- name: roll_up_usage
-- Why by transactions: numbers become visible out of order; below the oldest transaction under way nothing comes any more.
WITH mark AS MATERIALIZED (
    SELECT xid AS low, pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS high, from_id, cluster,
           this_cluster() AS here
    FROM usage_rollups WHERE name = 'usage'
    FOR UPDATE SKIP LOCKED
), ours AS MATERIALIZED (
    SELECT * FROM mark WHERE low <= high AND (cluster = here OR cluster = 0 OR here = 0)
), part AS (
    SELECT u.* FROM ours JOIN usage u ON u.xid >= ours.low AND u.xid < ours.high AND u.id > ours.from_id
    UNION ALL
    SELECT u.* FROM usage u WHERE (SELECT low FROM ours) = 0 AND u.id <= (SELECT from_id FROM ours)
), fresh AS MATERIALIZED (
    SELECT u.tenant_id, date_trunc('hour', u.at, 'UTC') AS hour, u.kind, u.workflow_id, coalesce(u.action, '') AS action,
           sum(u.quantity)::bigint AS quantity, sum(u.seconds) AS seconds, sum(u.bytes_in)::bigint AS bytes_in,
           sum(u.bytes_out)::bigint AS bytes_out, count(*) AS n
    FROM part u
    GROUP BY 1, 2, 3, 4, 5
), hourly AS (
    INSERT INTO usage_hourly AS h (tenant_id, hour, kind, workflow_id, action, quantity, seconds, bytes_in, bytes_out)
    SELECT tenant_id, hour, kind, workflow_id, action, quantity, seconds, bytes_in, bytes_out FROM fresh
    ON CONFLICT (tenant_id, hour, kind, workflow_id, action) DO UPDATE SET
        quantity = h.quantity + excluded.quantity, seconds = h.seconds + excluded.seconds,
        bytes_in = h.bytes_in + excluded.bytes_in, bytes_out = h.bytes_out + excluded.bytes_out
), monthly AS (
    INSERT INTO usage_monthly AS m (tenant_id, period, kind, workflow_id, action, quantity, seconds, bytes_in, bytes_out)
    SELECT tenant_id, date_trunc('month', hour AT TIME ZONE 'UTC')::date, kind, workflow_id, action, sum(quantity),
           sum(seconds), sum(bytes_in), sum(bytes_out)
    FROM fresh GROUP BY 1, 2, 3, 4, 5
    ON CONFLICT (tenant_id, period, kind, workflow_id, action) DO UPDATE SET
        quantity = m.quantity + excluded.quantity, seconds = m.seconds + excluded.seconds,
        bytes_in = m.bytes_in + excluded.bytes_in, bytes_out = m.bytes_out + excluded.bytes_out
), moved AS (
    UPDATE usage_rollups r SET xid = ours.high, cluster = coalesce(nullif(ours.here, 0), r.cluster)
    FROM ours WHERE r.name = 'usage' AND ours.high > ours.low
)
SELECT coalesce((SELECT sum(n) FROM fresh), 0)::bigint AS rows, low, high, from_id,
       NOT EXISTS (SELECT 1 FROM ours) AS elsewhere
FROM mark;

-- name: restart_rollups
-- Why: after a restore into another cluster the mark is none of this one's numbers. All is in the ledger until it is
-- rolled up again; what is there now has no number that counts here, and is told by its id.
WITH mark AS (
    UPDATE usage_rollups SET xid = 0, from_id = settle_usage(), cluster = this_cluster()
    WHERE name = 'usage'
      AND (xid > pg_snapshot_xmin(pg_current_snapshot())::text::bigint
        OR (cluster <> this_cluster() AND cluster <> 0 AND this_cluster() <> 0))
    RETURNING from_id
), hourly AS (
    DELETE FROM usage_hourly WHERE EXISTS (SELECT 1 FROM mark)
), monthly AS (
    DELETE FROM usage_monthly WHERE EXISTS (SELECT 1 FROM mark)
)
SELECT from_id FROM mark;

-- name: usage_of_month
-- Why both in one statement: the mark of the roll-up and the rows behind it belong together.
-- Why an upper bound that none reaches: by a range Postgres expects few rows, and takes the index that finds the newest.
SELECT kind, workflow_id, action, sum(quantity)::bigint AS quantity, sum(seconds) AS seconds,
       sum(bytes_in)::bigint AS bytes_in, sum(bytes_out)::bigint AS bytes_out
FROM (
    SELECT kind, workflow_id, action, quantity, seconds, bytes_in, bytes_out
    FROM usage_monthly WHERE tenant_id = :tenant_id AND period = :period::date
    UNION ALL
    SELECT u.kind, u.workflow_id, coalesce(u.action, ''), u.quantity, u.seconds, u.bytes_in, u.bytes_out
    FROM usage u
    WHERE u.tenant_id = :tenant_id AND u.xid < 9223372036854775807
      AND u.xid >= (SELECT xid FROM usage_rollups WHERE name = 'usage')
      AND u.id > (SELECT CASE WHEN xid = 0 THEN 0 ELSE from_id END FROM usage_rollups WHERE name = 'usage')
      AND u.at >= :period::date::timestamp AT TIME ZONE 'UTC'
      AND u.at < (:period::date + interval '1 month') AT TIME ZONE 'UTC'
) parts
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3;

-- name: tenants_with_expired_runs
-- Why one look for each tenant: each has its own days, and only the run that ended first matters.
-- Why legacy runs stay: whoever came over from the older system was promised every log line.
SELECT t.id
FROM tenants t JOIN plans p ON p.name = t.plan
CROSS JOIN LATERAL (SELECT least(((p.limits || t.limits) ->> 'log_retention_days')::bigint, 36500)::int AS days) kept
CROSS JOIN LATERAL (
    SELECT 1 FROM runs r
    WHERE r.tenant_id = t.id AND r.trigger <> 'legacy'
      AND r.finished_at < coalesce(:at::timestamptz, now()) - make_interval(days => kept.days)
      AND (r.parent_run_id IS NULL OR coalesce((
          SELECT above.finished_at IS NOT NULL FROM runs above
          WHERE above.tenant_id = r.tenant_id AND above.id = r.parent_run_id), true))
    ORDER BY r.finished_at LIMIT 1) oldest
WHERE t.status <> 'deleted' AND kept.days IS NOT NULL
ORDER BY t.id;

-- name: delete_expired_runs
-- Why the limit is read here again: it may have been raised since the tenant was found.
-- Why a child stays while its parent is under way: the parent reads what came of it. Why locked rows are passed over:
-- another does the same, or somebody replays the run right now and copies its steps.
WITH expired AS (
    SELECT r.tenant_id, r.id
    FROM runs r
    WHERE r.tenant_id = :tenant_id AND r.trigger <> 'legacy'
      AND r.finished_at < (
          SELECT coalesce(:at::timestamptz, now()) - make_interval(
              days => least(((p.limits || t.limits) ->> 'log_retention_days')::bigint, 36500)::int)
          FROM tenants t JOIN plans p ON p.name = t.plan
          WHERE t.id = :tenant_id AND t.status <> 'deleted')
      AND (r.parent_run_id IS NULL OR coalesce((
          SELECT above.finished_at IS NOT NULL FROM runs above
          WHERE above.tenant_id = r.tenant_id AND above.id = r.parent_run_id), true))
    ORDER BY r.finished_at LIMIT :limit
    FOR UPDATE OF r SKIP LOCKED
), gone AS (
    DELETE FROM runs USING expired WHERE runs.tenant_id = expired.tenant_id AND runs.id = expired.id RETURNING 1
)
SELECT count(*) AS count FROM gone;

-- name: rank_tenants
-- Why logarithms: what a tenant used fades with time, and nobody has to touch the rows of those that rest. The score is
-- ln(sum of seconds * exp(when / :fades)), a run that was admitted or held being worth a second besides.
WITH used AS (
    SELECT u.tenant_id, sum(CASE u.kind WHEN 'worker_seconds' THEN u.seconds ELSE u.quantity END) AS seconds
    FROM usage u
    WHERE u.xid >= :low AND u.xid < :high AND u.id > :above AND u.kind IN ('execution', 'held', 'worker_seconds')
    GROUP BY 1
)
INSERT INTO metric_tenants AS t (tenant, score)
SELECT tenant_id, ln(seconds) + extract(epoch FROM now()) / :fades FROM used WHERE seconds > 0
ON CONFLICT (tenant) DO UPDATE SET
    score = greatest(t.score, excluded.score) + ln(1 + exp(-least(abs(t.score - excluded.score), 500)));

-- name: choose_tenants
-- Why stored: whoever scrapes, and the totals, agree on who has a label of its own.
UPDATE metric_tenants m SET shown = ranked.first
FROM (
    SELECT tenant, row_number() OVER (ORDER BY score DESC, tenant) <= :limit AS first FROM metric_tenants
) ranked
WHERE m.tenant = ranked.tenant AND m.shown <> ranked.first;

-- name: fold_metrics
-- Why a label is chosen here and not when somebody scrapes: so no series ever goes down, whoever has a label next.
WITH events AS MATERIALIZED (
    DELETE FROM metric_events WHERE id IN (SELECT id FROM metric_events ORDER BY id LIMIT :limit)
    RETURNING tenant, kind, seconds, status, trigger
), ledger AS MATERIALIZED (
    SELECT u.tenant_id AS tenant, u.kind, u.action, u.outcome, sum(u.quantity)::float8 AS quantity,
           sum(u.seconds) AS seconds
    FROM usage u
    WHERE u.xid >= :low AND u.xid < :high AND u.id > :above AND u.kind IN ('action_call', 'held', 'worker_seconds')
    GROUP BY 1, 2, 3, 4
), parts (tenant, series, labels, value) AS (
    SELECT tenant, 'runs', ARRAY[status, trigger], count(*) FROM events WHERE kind = 'ended' GROUP BY 1, 3
    UNION ALL
    SELECT NULL, 'run_seconds', ARRAY[bucket], count(*)
    FROM events, LATERAL (SELECT coalesce(min(b)::text, '') FROM unnest(:run_seconds::float8[]) b WHERE b >= seconds)
        bound (bucket)
    WHERE kind = 'ended' GROUP BY 3
    UNION ALL
    SELECT NULL, 'run_seconds_sum', '{}', sum(seconds) FROM events WHERE kind = 'ended' HAVING count(*) > 0
    UNION ALL
    SELECT tenant, 'queue_wait_seconds', ARRAY[bucket], count(*)
    FROM events, LATERAL (SELECT coalesce(min(b)::text, '') FROM unnest(:queue_wait::float8[]) b WHERE b >= seconds)
        bound (bucket)
    WHERE kind = 'begun' GROUP BY 1, 3
    UNION ALL
    SELECT tenant, 'queue_wait_seconds_sum', '{}', sum(seconds) FROM events WHERE kind = 'begun' GROUP BY 1
    UNION ALL
    SELECT tenant, 'worker_seconds', '{}', seconds FROM ledger WHERE kind = 'worker_seconds'
    UNION ALL
    SELECT tenant, 'quota_held', ARRAY[coalesce(outcome, 'max_executions_per_month')], quantity
    FROM ledger WHERE kind = 'held'
    UNION ALL
    SELECT NULL, 'action_calls', ARRAY[coalesce(action, ''), coalesce(outcome, 'unknown')], quantity
    FROM ledger WHERE kind = 'action_call'
), added AS (
    INSERT INTO metric_totals AS t (tenant, series, labels, value)
    SELECT m.tenant, p.series, p.labels, sum(p.value)
    FROM parts p LEFT JOIN metric_tenants m ON m.tenant = p.tenant AND m.shown
    GROUP BY 1, 2, 3
    ON CONFLICT (tenant, series, labels) DO UPDATE SET value = t.value + excluded.value
)
SELECT count(*) AS events FROM events;

-- name: add_tallies
-- Why in order: two processes that flush at once lock the same rows in the same order.
INSERT INTO metric_totals AS t (series, labels, value)
SELECT series, labels, value FROM jsonb_to_recordset(:tallies::jsonb) AS n (series text, labels text[], value float8)
ORDER BY series, labels
ON CONFLICT (tenant, series, labels) DO UPDATE SET value = t.value + excluded.value;

-- name: metric_totals
-- Why two parts: each is one walk along the index.
SELECT NULL AS tenant, series, labels, value FROM metric_totals WHERE tenant IS NULL
UNION ALL
SELECT t.tenant, t.series, t.labels, t.value
FROM metric_tenants m JOIN metric_totals t ON t.tenant = m.tenant
WHERE m.shown;

-- name: quota_ratios
-- Why grouped before anything is divided: tenants with the limits of their plan differ in nothing but what they use, so
-- of all that have no label only the fullest counts. Why the lanes are given: how many wait and run is known there, and
-- here somebody would count a long backlog; as texts, for the driver takes far longer over long lists.
WITH used AS (
    SELECT m.tenant AS label, t.plan, nullif(t.limits, '{}') AS own, max(e.n) AS max_executions_per_month,
           max(w.n) AS max_workflows, max(c.n) AS max_credentials, max(s.n) AS max_members,
           max(l.waiting) AS max_queued_runs, max(l.running) AS max_concurrent_runs
    FROM tenants t
    LEFT JOIN metric_tenants m ON m.tenant = t.id AND m.shown
    LEFT JOIN (
        SELECT tenant_id, sum(used) AS n FROM quota_counters
        WHERE period = (SELECT date_trunc('month', now() AT TIME ZONE 'UTC')::date) GROUP BY 1
    ) e ON e.tenant_id = t.id
    LEFT JOIN (
        SELECT tenant_id, count(*) AS n FROM workflows WHERE deleted_at IS NULL GROUP BY 1
    ) w ON w.tenant_id = t.id
    LEFT JOIN (SELECT tenant_id, count(*) AS n FROM credentials GROUP BY 1) c ON c.tenant_id = t.id
    LEFT JOIN (
        SELECT tenant_id, count(*) AS n FROM (
            SELECT tenant_id FROM memberships
            UNION ALL
            SELECT tenant_id FROM invites WHERE accepted_at IS NULL AND revoked_at IS NULL AND expires_at > now()
        ) seats GROUP BY 1
    ) s ON s.tenant_id = t.id
    LEFT JOIN unnest(string_to_array(:tenants, chr(31)), string_to_array(:waiting, chr(31))::bigint[],
                     string_to_array(:running, chr(31))::bigint[]) AS l (tenant_id, waiting, running)
        ON l.tenant_id = t.id
    WHERE t.status = 'active'
    GROUP BY 1, 2, 3
)
SELECT used.label AS tenant, one.quota,
       max(CASE WHEN cap.most > 0 THEN one.n / cap.most ELSE 1 END)::float8 AS ratio
FROM used JOIN plans p ON p.name = used.plan,
     LATERAL (VALUES ('max_executions_per_month', max_executions_per_month), ('max_workflows', max_workflows),
                     ('max_credentials', max_credentials), ('max_members', max_members),
                     ('max_queued_runs', max_queued_runs), ('max_concurrent_runs', max_concurrent_runs)) one (quota, n),
     LATERAL (SELECT ((p.limits || coalesce(used.own, '{}')) ->> one.quota)::float8) cap (most)
WHERE cap.most IS NOT NULL AND one.n IS NOT NULL
GROUP BY 1, 2;

-- name: passed_marks
-- Why from the counters: they are few, and counted anew before (`stale_counters`). Seen as a tenant it is about that one alone.
-- A limit of 0 is passed once there is a counter: the first run that is held makes it.
SELECT counted.tenant_id, counted.used, kept.monthly
FROM (
    SELECT c.tenant_id, sum(c.used)::bigint AS used
    FROM quota_counters c WHERE c.period = :period GROUP BY c.tenant_id) counted
JOIN tenants t ON t.id = counted.tenant_id AND t.status = 'active'
JOIN plans p ON p.name = t.plan
CROSS JOIN LATERAL (SELECT ((p.limits || t.limits) ->> 'max_executions_per_month')::bigint AS monthly) kept
WHERE counted.used * 100 >= kept.monthly * :first
  AND (SELECT count(*) FROM quota_notices n WHERE n.tenant_id = counted.tenant_id AND n.period = :period)
      < 1 + (counted.used * 100 >= kept.monthly * :last)::int
ORDER BY counted.tenant_id;
