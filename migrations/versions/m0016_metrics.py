"""Totals of the Prometheus series, and what happened to runs since they were last added up.

Triggers of `runs` note that one has begun for the first time or has ended, in the transaction in which it does, on
whatever path. The roll-up of the ledger takes these notes away and adds them to the totals in one transaction, so each
counts once. What was imported from the older system has happened elsewhere, and is not noted.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"

TABLES = """
CREATE TABLE metric_events (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    seconds DOUBLE PRECISION NOT NULL,
    status TEXT,
    trigger TEXT,
    CONSTRAINT pk_metric_events PRIMARY KEY (id),
    CONSTRAINT ck_metric_events_kind CHECK (kind IN ('begun', 'ended'))
);
CREATE TABLE metric_tenants (
    tenant TEXT NOT NULL,
    score DOUBLE PRECISION NOT NULL,
    shown BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT pk_metric_tenants PRIMARY KEY (tenant),
    CONSTRAINT fk_metric_tenants_tenant FOREIGN KEY (tenant) REFERENCES tenants (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX ix_metric_tenants_shown ON metric_tenants (tenant) WHERE shown;
CREATE TABLE metric_totals (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    tenant TEXT,
    series TEXT NOT NULL,
    labels TEXT[] NOT NULL,
    value DOUBLE PRECISION NOT NULL,
    CONSTRAINT pk_metric_totals PRIMARY KEY (id),
    CONSTRAINT uq_metric_totals UNIQUE NULLS NOT DISTINCT (tenant, series, labels),
    CONSTRAINT fk_metric_totals_tenant FOREIGN KEY (tenant) REFERENCES tenants (id) ON DELETE CASCADE
) WITH (fillfactor = 50);
"""

ACCESS = "\n".join(
    f"""
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} TO fairlane_tenant USING (false) WITH CHECK ({check});
CREATE POLICY system ON {table} TO fairlane_system USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO fairlane_system;
"""
    for table, check in (
        ("metric_events", "tenant = nullif(current_setting('app.tenant_id', true), '')"),
        ("metric_tenants", "false"),
        ("metric_totals", "false"),
    )
)

TRIGGERS = """
GRANT INSERT ON metric_events TO fairlane_tenant;
CREATE FUNCTION note_begun() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metric_events (tenant, kind, seconds)
        VALUES (NEW.tenant_id, 'begun', greatest(0, extract(epoch FROM NEW.started_at - NEW.queued_at)));
    RETURN NULL;
END
$$;
CREATE FUNCTION note_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO metric_events (tenant, kind, seconds, status, trigger)
        VALUES (NEW.tenant_id, 'ended', greatest(0, extract(epoch FROM NEW.finished_at - NEW.queued_at)), NEW.status,
                NEW.trigger);
    RETURN NULL;
END
$$;
CREATE TRIGGER note_begun AFTER UPDATE OF started_at ON runs FOR EACH ROW
    WHEN (OLD.started_at IS NULL AND NEW.started_at IS NOT NULL AND NEW.trigger <> 'legacy')
    EXECUTE FUNCTION note_begun();
CREATE TRIGGER note_ended AFTER UPDATE OF finished_at ON runs FOR EACH ROW
    WHEN (OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL AND NEW.trigger <> 'legacy')
    EXECUTE FUNCTION note_ended();
"""


def upgrade() -> None:
    for statements in (TABLES, ACCESS, TRIGGERS):
        op.execute(statements)


def downgrade() -> None:
    """The totals are lost: what they were made of is in the ledger and in the rows of runs."""
    op.execute(
        """
        DROP TRIGGER note_begun ON runs;
        DROP TRIGGER note_ended ON runs;
        DROP FUNCTION note_begun();
        DROP FUNCTION note_ended();
        DROP TABLE metric_totals;
        DROP TABLE metric_tenants;
        DROP TABLE metric_events;
        """
    )
