"""Prices of plans, when a tenant was on which plan, invoices that never change, and what was reported to a provider.

The plans get prices to begin with; an operator replaces them before anybody gets a bill. A month may be priced until it
is closed, never after. The trigger notes a change of plan whoever makes it: the plan before, when that was the first
change, and the plan from now on.
"""

from __future__ import annotations

from alembic import op

from migrations.guard import refuse_if

revision = "0013"
down_revision = "0012"

OWN_ROWS = "tenant_id = nullif(current_setting('app.tenant_id', true), '')"

PRICES = """
CREATE TABLE plan_prices (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    plan TEXT NOT NULL,
    starts DATE NOT NULL,
    currency TEXT NOT NULL,
    base BIGINT NOT NULL,
    included BIGINT NOT NULL,
    per_thousand BIGINT NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT pk_plan_prices PRIMARY KEY (id),
    CONSTRAINT fk_plan_prices_plan FOREIGN KEY (plan) REFERENCES plans (name),
    CONSTRAINT ck_plan_prices_not_negative CHECK (base >= 0 AND included >= 0 AND per_thousand >= 0),
    CONSTRAINT ck_plan_prices_first_of_month CHECK (extract(day FROM starts) = 1)
);
CREATE INDEX ix_plan_prices_plan_starts ON plan_prices (plan, starts);
INSERT INTO plan_prices (plan, starts, currency, base, included, per_thousand)
    SELECT name, DATE '2020-01-01', 'USD', base, included, per_thousand
    FROM (VALUES ('free', 0, 10000, 0), ('team', 4900, 250000, 40), ('enterprise', 49900, 1000000, 25))
        AS seeded (plan, base, included, per_thousand)
    JOIN plans ON name = plan;
ALTER TABLE plan_prices ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON plan_prices TO fairlane_tenant USING (true) WITH CHECK (false);
CREATE POLICY system ON plan_prices TO fairlane_system USING (true) WITH CHECK (true);
GRANT SELECT ON plan_prices TO fairlane_tenant;
GRANT SELECT, INSERT ON plan_prices TO fairlane_system;
"""

TERMS = """
CREATE TABLE plan_terms (
    tenant_id TEXT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    plan TEXT NOT NULL,
    since timestamptz NOT NULL,
    CONSTRAINT pk_plan_terms PRIMARY KEY (tenant_id, id),
    CONSTRAINT fk_plan_terms_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE FUNCTION note_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO plan_terms (tenant_id, plan, since)
        SELECT OLD.id, OLD.plan, OLD.created_at
        WHERE NOT EXISTS (SELECT 1 FROM plan_terms WHERE tenant_id = OLD.id);
    INSERT INTO plan_terms (tenant_id, plan, since) VALUES (NEW.id, NEW.plan, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE TRIGGER note_plan AFTER UPDATE OF plan ON tenants FOR EACH ROW
    WHEN (OLD.plan IS DISTINCT FROM NEW.plan) EXECUTE FUNCTION note_plan();
"""

INVOICES = """
CREATE TABLE invoices (
    tenant_id TEXT NOT NULL,
    period TEXT NOT NULL,
    id TEXT NOT NULL,
    document JSONB NOT NULL,
    position BIGINT NOT NULL,
    closed_at timestamptz NOT NULL,
    CONSTRAINT pk_invoices PRIMARY KEY (tenant_id, period),
    CONSTRAINT uq_invoices_id UNIQUE (id),
    CONSTRAINT fk_invoices_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE INDEX ix_invoices_period ON invoices (period);
CREATE TABLE billing_accounts (
    tenant_id TEXT NOT NULL,
    customer TEXT NOT NULL,
    export_from timestamptz NOT NULL,
    CONSTRAINT pk_billing_accounts PRIMARY KEY (tenant_id),
    CONSTRAINT fk_billing_accounts_tenant_id
        FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE
);
CREATE TABLE meter_exports (
    tenant_id TEXT NOT NULL,
    hour timestamptz NOT NULL,
    seq INTEGER NOT NULL,
    identifier TEXT NOT NULL,
    customer TEXT NOT NULL,
    quantity BIGINT NOT NULL,
    state TEXT DEFAULT 'planned' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    sent_first_at timestamptz,
    claimed_until timestamptz,
    sent_at timestamptz,
    error TEXT,
    CONSTRAINT pk_meter_exports PRIMARY KEY (tenant_id, hour, seq),
    CONSTRAINT uq_meter_exports_identifier UNIQUE (identifier),
    CONSTRAINT fk_meter_exports_tenant_id FOREIGN KEY (tenant_id) REFERENCES tenants (id) ON DELETE CASCADE,
    CONSTRAINT ck_meter_exports_state CHECK (state IN ('planned', 'sent', 'refused', 'unknown')),
    CONSTRAINT ck_meter_exports_sent CHECK ((state = 'sent') = (sent_at IS NOT NULL))
);
CREATE INDEX ix_meter_exports_planned ON meter_exports (hour, tenant_id) WHERE state = 'planned';
"""

OF_TENANTS = {
    "plan_terms": "SELECT, INSERT",
    "invoices": "SELECT, INSERT",
    "billing_accounts": "SELECT, INSERT, UPDATE, DELETE",
    "meter_exports": "SELECT, INSERT, UPDATE",
}
"""Table, and what the system role may do; the tenant role reads."""


def upgrade() -> None:
    for statements in (PRICES, TERMS, INVOICES):
        op.execute(statements)
    for table, grants in OF_TENANTS.items():
        op.execute(
            f"""
            ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
            CREATE POLICY tenant ON {table} TO fairlane_tenant USING ({OWN_ROWS}) WITH CHECK ({OWN_ROWS});
            CREATE POLICY system ON {table} TO fairlane_system USING (true) WITH CHECK (true);
            GRANT SELECT ON {table} TO fairlane_tenant;
            GRANT {grants} ON {table} TO fairlane_system;
            """
        )


def downgrade() -> None:
    refuse_if("SELECT 1 FROM invoices", "months were closed; their invoices would be lost")
    refuse_if("SELECT 1 FROM meter_exports", "usage was reported to a provider; what was would be forgotten")
    op.execute(
        """
        DROP TRIGGER note_plan ON tenants;
        DROP FUNCTION note_plan();
        DROP TABLE meter_exports;
        DROP TABLE billing_accounts;
        DROP TABLE invoices;
        DROP TABLE plan_terms;
        DROP TABLE plan_prices;
        """
    )
