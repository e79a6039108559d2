"""Every table, its constraints, and who may see which of its rows.

Two database roles execute our statements, neither owner nor superuser (`engine.db` switches to one at the start of each
transaction): the tenant role sees the rows of the tenant named in the setting ``app.tenant_id`` and nothing without it;
the system role sees all and is for schedulers, sweepers and the look-up of who is calling. Row-level security is
forced, so the owner of the tables has no way around it either. `Table.info["visible"]` holds the condition under which
the tenant role sees a row; `Table.info["grants"]` what it may do. Tests compare both, and the tables, with the
migrations.

Foreign keys between tenant tables are composite, ``(tenant_id, id)``: a row cannot refer to another tenant's.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from engine.models_metrics import metric_events as metric_events
from engine.models_metrics import metric_tenants as metric_tenants
from engine.models_metrics import metric_totals as metric_totals
from engine.models_usage import notice_deliveries as notice_deliveries
from engine.models_usage import notice_targets as notice_targets
from engine.models_usage import quota_counters as quota_counters
from engine.models_usage import quota_notices as quota_notices
from engine.models_usage import usage as usage
from engine.models_usage import usage_hourly as usage_hourly
from engine.models_usage import usage_monthly as usage_monthly
from engine.models_usage import usage_rollups as usage_rollups
from engine.schema import APPEND_GRANTS, CURRENT_TENANT, ROLES
from engine.schema import in_tenant as _in_tenant
from engine.schema import metadata as metadata
from engine.schema import moment as _moment
from engine.schema import of_tenant as _of_tenant
from engine.schema import one_of as _one_of
from engine.schema import tenant_id as _tenant_id
from engine.schema import tenant_info as _tenant_info
from engine.states import RunState, StepState

limits_version = Sequence("limits_version", metadata=metadata)
"""Orders all configurations of all lanes: a lane never goes back to an older one."""

step_changes = Sequence("step_changes", metadata=metadata)
"""Numbers the changes of steps; within a run in the order in which they become visible."""

plans = Table(
    "plans",
    metadata,
    Column("name", Text, primary_key=True),
    Column("limits", JSONB, nullable=False, doc="every limit of `engine.plans.Limits`; null is unlimited"),
    Column("limits_version", BigInteger, nullable=False),
    info=_tenant_info(visible="true", grants=("SELECT",)),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("plan", Text, ForeignKey("plans.name", name="fk_tenants_plan"), nullable=False, server_default="free"),
    Column("status", Text, nullable=False, server_default="active"),
    Column("limits", JSONB, nullable=False, server_default=text("'{}'::jsonb"), doc="what differs from the plan"),
    Column("limits_version", BigInteger, nullable=False, server_default="0"),
    Column("organizations", Boolean, nullable=False, server_default=text("true"), doc="see `engine.rollout`"),
    _moment("created_at", now=True),
    _moment("deleted_at"),
    _moment("erase_after"),
    CheckConstraint(_one_of("status", ("active", "suspended", "deleted")), name="status"),
    Index("ix_tenants_plan_id", "plan", "id"),
    Index("ix_tenants_erase_after", "erase_after", postgresql_where=text("erase_after IS NOT NULL")),
    # Besides, the tenant role may UPDATE the column `name`: an organization changes neither its plan nor its limits.
    info=_tenant_info(visible=f"id = {CURRENT_TENANT}", grants=("SELECT",)),
)

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("email", Text, nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("tenant_id", Text, ForeignKey("tenants.id", name="fk_users_tenant_id")),
    Column("token_version", Integer, nullable=False, server_default="0", doc="tokens of an older one are refused"),
    _moment("created_at", now=True),
    Index("ix_users_tenant_id", "tenant_id"),
    Index("ix_users_lower_email", func.lower(text("email"))),
    info=_tenant_info(
        visible=f"tenant_id = {CURRENT_TENANT}"
        f" OR id IN (SELECT user_id FROM memberships WHERE memberships.tenant_id = {CURRENT_TENANT})",
        grants=("SELECT",),
    ),
)

memberships = Table(
    "memberships",
    metadata,
    _tenant_id(primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("role", Text, nullable=False),
    _moment("joined_at", now=True),
    _of_tenant("memberships"),
    CheckConstraint(_one_of("role", ROLES), name="role"),
    Index("ix_memberships_user_id", "user_id"),
    info=_tenant_info(),
)

data_keys = Table(
    "data_keys",
    metadata,
    _tenant_id(primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("master_key_id", Text, nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    _moment("created_at", now=True),
    _of_tenant("data_keys"),
    info=_tenant_info(),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", name="fk_credentials_user_id", ondelete="SET NULL")),
    _tenant_id(),
    Column("service_name", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("encrypted_key", Text, doc="the legacy ciphertext, until it is re-encrypted"),
    Column("ciphertext", LargeBinary),
    Column("key_version", Integer),
    Column("fingerprint", Text),
    Column("broken_reason", Text),
    _moment("created_at", now=True),
    _moment("updated_at", now=True),
    _of_tenant("credentials"),
    UniqueConstraint("tenant_id", "id", name="uq_credentials_tenant_id_id"),
    UniqueConstraint("tenant_id", "name", name="uq_credentials_tenant_id_name"),
    Index("ix_credentials_tenant_id_service_name", "tenant_id", "service_name"),
    CheckConstraint(
        "ciphertext IS NOT NULL AND key_version IS NOT NULL OR encrypted_key IS NOT NULL", name="has_secret"
    ),
    info=_tenant_info(),
)

workflows = Table(
    "workflows",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", name="fk_workflows_user_id", ondelete="SET NULL")),
    _tenant_id(),
    Column("name", Text, nullable=False),
    Column("trigger_type", Text, nullable=False),
    Column("action_type", Text, doc="this and the next three: the legacy form as it was written"),
    Column("config_json", Text),
    Column("action_chain", Text),
    Column("parameters", Text),
    Column("is_active", Boolean, nullable=False, server_default=text("true")),
    Column("inactive_reason", Text),
    Column("version", Integer, nullable=False, server_default="0", doc="the current one; 0 before the first"),
    _moment("last_executed_at"),
    _moment("created_at", now=True),
    _moment("updated_at", now=True),
    _moment("deleted_at"),
    _of_tenant("workflows"),
    UniqueConstraint("tenant_id", "id", name="uq_workflows_tenant_id_id"),
    info=_tenant_info(),
)

workflow_versions = Table(
    "workflow_versions",
    metadata,
    _tenant_id(primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("definition", JSONB, nullable=False),
    Column("hash", Text, nullable=False),
    Column("created_by", Text),
    _moment("created_at", now=True),
    _in_tenant(name="fk_workflow_versions_workflow", target="workflows", columns=("workflow_id",), keys=("id",)),
    info=_tenant_info(grants=("SELECT", "INSERT", "DELETE")),
)

triggers = Table(
    "triggers",
    metadata,
    _tenant_id(primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("config", JSONB, nullable=False),
    _moment("next_fire_at"),
    _moment("last_fired_at"),
    Column("cursor", JSONB, doc="where a poll goes on; NULL before the first"),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("paused_reason", Text),
    Column("last_error", Text, doc="why the last poll failed; NULL once one succeeds"),
    _in_tenant(name="fk_triggers_workflow", target="workflows", columns=("workflow_id",), keys=("id",)),
    Index("ix_triggers_next_fire_at", "next_fire_at", postgresql_where=text("next_fire_at IS NOT NULL")),
    info=_tenant_info(),
)

poll_items = Table(
    "poll_items",
    metadata,
    _tenant_id(primary_key=True),
    Column("workflow_id", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    _moment("seen_at", now=True),
    _in_tenant(name="fk_poll_items_workflow", target="workflows", columns=("workflow_id",), keys=("id",)),
    info=_tenant_info(),
)

runs = Table(
    "runs",
    metadata,
    _tenant_id(primary_key=True),
    Column("id", Text, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("trigger", Text, nullable=False, doc="what started it: webhook, schedule, poll, api, ..."),
    Column("input", JSONB, nullable=False, doc="the root `trigger` of its expressions"),
    Column("output", JSONB),
    Column("error", JSONB),
    Column("attempt", Integer, nullable=False, server_default="0", doc="the fencing token"),
    Column("checkpoint", Integer, nullable=False, server_default="0", doc="how many this attempt has stored"),
    Column("priority", SmallInteger, nullable=False, server_default="5"),
    Column("idempotency_key", Text),
    Column("crashes", SmallInteger, nullable=False, server_default="0", doc="workers that died with it in hand"),
    Column("replay_of", Text),
    Column("parent_run_id", Text, doc="whose step workflow.run started it"),
    Column("depth", SmallInteger, nullable=False, server_default="0", doc="runs above it that led to it"),
    Column("concurrency_key", Text, doc="what it shares its workflow's limit by, once that is known"),
    Column("concurrency_limit", SmallInteger),
    Column("wait_reason", Text),
    _moment("wake_at"),
    Column("max_seconds", Integer, doc="what the plan allows it in the hands of workers"),
    _moment("deadline_at"),
    _moment("queued_at", now=True),
    _moment("started_at"),
    _moment("heartbeat_at"),
    _moment("finished_at"),
    _in_tenant(
        name="fk_runs_version",
        target="workflow_versions",
        columns=("workflow_id", "version"),
        keys=("workflow_id", "version"),
    ),
    CheckConstraint(_one_of("status", RunState), name="status"),
    CheckConstraint(
        f"({_one_of('status', [s for s in RunState if s.is_terminal])}) = (finished_at IS NOT NULL)", name="finished"
    ),
    CheckConstraint(
        "status <> 'running' OR (started_at IS NOT NULL AND heartbeat_at IS NOT NULL AND attempt > 0)", name="running"
    ),
    CheckConstraint("(status IN ('held', 'waiting')) = (wait_reason IS NOT NULL)", name="wait_reason"),
    # Without tenant_id, of which the workflow has one: before the table has statistics, Postgres takes an index on
    # (tenant_id, workflow_id, id) for one run of a tenant to be as good as the primary key, and keeps that plan.
    Index("ix_runs_workflow_id_id", "workflow_id", "id"),
    Index(
        "uq_runs_tenant_id_idempotency_key",
        "tenant_id",
        "idempotency_key",
        unique=True,
        postgresql_where=text("idempotency_key IS NOT NULL"),
    ),
    # What the sweeper walks through. Neither index holds the status, so that beginning a run changes no index.
    Index("ix_runs_live", "id", postgresql_where=text("finished_at IS NULL AND wait_reason IS NULL")),
    Index("ix_runs_wake_at", "wake_at", postgresql_where=text("wake_at IS NOT NULL")),
    Index("ix_runs_parent_run_id", "parent_run_id", postgresql_where=text("parent_run_id IS NOT NULL")),
    # Who has a place under a limit, and who waits for one: few and perhaps very many, so each has its own index.
    Index(
        "ix_runs_places",
        "workflow_id",
        "concurrency_key",
        "id",
        postgresql_where=text(
            "concurrency_key IS NOT NULL AND finished_at IS NULL AND wait_reason IS DISTINCT FROM 'concurrency'"
        ),
    ),
    Index(
        "ix_runs_line",
        "workflow_id",
        "concurrency_key",
        "id",
        postgresql_where=text("wait_reason = 'concurrency'"),
    ),
    # For admission: who waits for a worker, counted when a limit is near, and who is held over a quota. Every priority
    # is at least 0; it is there so that the sweeper's statements keep to ix_runs_live, which is in their order.
    Index(
        "ix_runs_backlog",
        "tenant_id",
        postgresql_where=text("finished_at IS NULL AND wait_reason IS NULL AND priority >= 0"),
    ),
    Index("ix_runs_held", "tenant_id", "id", postgresql_where=text("wait_reason = 'quota'")),
    # For retention. Whoever looks for one run never names the trigger, so nobody takes this for the primary key.
    Index(
        "ix_runs_ended",
        "tenant_id",
        "finished_at",
        postgresql_where=text("finished_at IS NOT NULL AND trigger <> 'legacy'"),
    ),
    Index("ix_runs_waits_for_runs", "id", postgresql_where=text("wait_reason IN ('workflow', 'concurrency')")),
    info=_tenant_info(),
)

steps = Table(
    "steps",
    metadata,
    _tenant_id(primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("step_id", Text, primary_key=True),
    Column("item", Text, primary_key=True, server_default=""),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("output", JSONB),
    Column("error", JSONB),
    _moment("started_at"),
    _moment("finished_at"),
    Column("wait_reason", Text, doc="why it waits without a worker"),
    _moment("wake_at"),
    Column("signal", JSONB, doc="the answer that it waited for"),
    Column("seq", BigInteger, server_default=text("nextval('step_changes')"), doc="grows with every change of a step"),
    _in_tenant(name="fk_steps_run", target="runs", columns=("run_id",), keys=("id",)),
    CheckConstraint(_one_of("status", StepState), name="status"),
    CheckConstraint("(status = 'running') = (finished_at IS NULL)", name="finished"),
    CheckConstraint("wait_reason IS NULL OR status = 'running'", name="waiting"),
    info=_tenant_info(),
)

execution_logs = Table(
    "execution_logs",
    metadata,
    _tenant_id(primary_key=True),
    Column("run_id", Text, primary_key=True),
    Column("seq", BigInteger, Identity(always=True), primary_key=True),
    Column("step_id", Text),
    Column("level", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSONB),
    _moment("at", now=True),
    _in_tenant(name="fk_execution_logs_run", target="runs", columns=("run_id",), keys=("id",)),
    info=_tenant_info(grants=("SELECT", "INSERT", "DELETE")),
)

invites = Table(
    "invites",
    metadata,
    Column("id", Text, primary_key=True),
    _tenant_id(),
    Column("email", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("created_by", Text),
    _moment("created_at", now=True),
    _moment("expires_at", nullable=False),
    _moment("accepted_at"),
    Column("accepted_by", Text),
    _moment("revoked_at"),
    _of_tenant("invites"),
    CheckConstraint(_one_of("role", ROLES), name="role"),
    Index("ix_invites_tenant_id_email", "tenant_id", "email"),
    Index(
        "uq_invites_pending",
        "tenant_id",
        func.lower(text("email")),
        unique=True,
        postgresql_where=text("accepted_at IS NULL AND revoked_at IS NULL"),
    ),
    info=_tenant_info(),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    _tenant_id(),
    Column("name", Text, nullable=False),
    Column("prefix", Text, nullable=False, doc="the first characters, to recognise a key by"),
    Column("secret_hash", LargeBinary, nullable=False, unique=True, doc="SHA-256 of the whole key"),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("created_by", Text),
    _moment("created_at", now=True),
    _moment("expires_at"),
    _moment("last_used_at"),
    _moment("revoked_at"),
    _of_tenant("api_keys"),
    Index("ix_api_keys_tenant_id", "tenant_id"),
    info=_tenant_info(),
)

# A trigger sets number, time and hashes, under a lock of the tenant; another refuses to change a row.
audit = Table(
    "audit",
    metadata,
    _tenant_id(primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False, doc="counts from 1 in each tenant"),
    _moment("at", now=True),
    Column("actor", Text, nullable=False, doc="user, API key or operator"),
    Column("action", Text, nullable=False, doc="object.verb, such as credential.created"),
    Column("object", Text),
    Column("ip", Text),
    Column("data", JSONB),
    Column("previous_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    _of_tenant("audit"),
    Index("ix_audit_tenant_id_object", "tenant_id", "object", "id"),
    info=_tenant_info(grants=APPEND_GRANTS),
)

decryptions = Table(
    "decryptions",
    metadata,
    _tenant_id(primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    Column("credential_id", Text, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("step_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("sealed_by", BigInteger, doc="the row of the audit that vouches for it"),
    _of_tenant("decryptions"),
    Index("ix_decryptions_unsealed", "tenant_id", postgresql_where=text("sealed_by IS NULL")),
    Index("ix_decryptions_tenant_id_credential_id", "tenant_id", "credential_id", "id"),
    # Besides, the tenant role may INSERT every column but id, at and sealed_by; the system role UPDATE the last.
    info=_tenant_info(grants=("SELECT",)),
)

plan_prices = Table(
    "plan_prices",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("plan", Text, ForeignKey("plans.name", name="fk_plan_prices_plan"), nullable=False),
    Column("starts", Date, nullable=False, doc="the first of the month from which on it holds"),
    Column("currency", Text, nullable=False),
    Column("base", BigInteger, nullable=False, doc="this and `per_thousand` in minor units"),
    Column("included", BigInteger, nullable=False),
    Column("per_thousand", BigInteger, nullable=False),
    _moment("created_at", now=True),
    CheckConstraint("base >= 0 AND included >= 0 AND per_thousand >= 0", name="not_negative"),
    CheckConstraint("extract(day FROM starts) = 1", name="first_of_month"),
    Index("ix_plan_prices_plan_starts", "plan", "starts"),
    info=_tenant_info(visible="true", grants=("SELECT",)),
)

# A trigger of `tenants` writes it, at every change of a plan.
plan_terms = Table(
    "plan_terms",
    metadata,
    _tenant_id(primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("plan", Text, nullable=False),
    _moment("since", nullable=False),
    _of_tenant("plan_terms"),
    info=_tenant_info(grants=("SELECT",)),
)

# Append-only, for the system role too.
invoices = Table(
    "invoices",
    metadata,
    _tenant_id(primary_key=True),
    Column("period", Text, primary_key=True, doc="such as 2026-10"),
    Column("id", Text, nullable=False, unique=True),
    Column("document", JSONB, nullable=False),
    Column("position", BigInteger, nullable=False, doc="the newest row of the ledger that was there"),
    _moment("closed_at", nullable=False),
    _of_tenant("invoices"),
    Index("ix_invoices_period", "period"),
    info=_tenant_info(grants=("SELECT",)),
)

billing_accounts = Table(
    "billing_accounts",
    metadata,
    _tenant_id(primary_key=True),
    Column("customer", Text, nullable=False, doc="the provider's id of the tenant"),
    _moment("export_from", nullable=False),
    _of_tenant("billing_accounts"),
    info=_tenant_info(grants=("SELECT",)),
)

meter_exports = Table(
    "meter_exports",
    metadata,
    _tenant_id(primary_key=True),
    Column("hour", DateTime(timezone=True), primary_key=True),
    Column("seq", Integer, primary_key=True, autoincrement=False, doc="1, and more for what was recorded later"),
    Column("identifier", Text, nullable=False, unique=True),
    Column("customer", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("state", Text, nullable=False, server_default="planned"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    _moment("sent_first_at"),
    _moment("claimed_until"),
    _moment("sent_at"),
    Column("error", Text),
    _of_tenant("meter_exports"),
    CheckConstraint(_one_of("state", ("planned", "sent", "refused", "unknown")), name="state"),
    CheckConstraint("(state = 'sent') = (sent_at IS NOT NULL)", name="sent"),
    Index("ix_meter_exports_planned", "hour", "tenant_id", postgresql_where=text("state = 'planned'")),
    info=_tenant_info(grants=("SELECT",)),
)

# The execution log of the multi-user system; ours is `execution_logs`.
logs = Table(
    "logs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    _tenant_id(),
    Column("status", Text, nullable=False),
    Column("message", Text),
    _moment("executed_at", now=True),
    _in_tenant(name="fk_logs_workflow", target="workflows", columns=("workflow_id",), keys=("id",)),
    Index("ix_logs_tenant_id_workflow_id", "tenant_id", "workflow_id"),
    info=_tenant_info(),
)
