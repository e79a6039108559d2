"""The tables of what is used: the ledger, its roll-ups, the counters that admit runs, and notices near a limit.

`usage` is append-only and the truth: `usage_hourly`, `usage_monthly` and `quota_counters` can be made again from it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    SmallInteger,
    Table,
    Text,
    text,
)

from engine.schema import APPEND_GRANTS, in_tenant, metadata, moment, of_tenant, one_of, tenant_id, tenant_info

usage = Table(
    "usage",
    metadata,
    tenant_id(primary_key=True),
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    moment("at", now=True),
    Column("kind", Text, nullable=False, doc="see `engine.usage.Kind`"),
    Column("run_id", Text, doc="NULL for what was rejected: there is none"),
    Column("workflow_id", Text, nullable=False),
    Column("action", Text),
    Column("quantity", Integer, nullable=False, server_default="1"),
    Column("seconds", Double, nullable=False, server_default="0", doc="of a worker"),
    Column("outcome", Text, doc="of action_call: the state of its step; of held: the limit; of rejected: the code"),
    Column("bytes_in", BigInteger, nullable=False, server_default="0", doc="what an action answered, as JSON"),
    Column("bytes_out", BigInteger, nullable=False, server_default="0", doc="what an action was given, as JSON"),
    Column(
        "xid",
        BigInteger,
        nullable=False,
        server_default=text("((pg_current_xact_id())::text)::bigint"),
        doc="the transaction that wrote it, for the roll-up",
    ),
    of_tenant("usage"),
    CheckConstraint(one_of("kind", ("execution", "action_call", "worker_seconds", "held", "rejected")), name="kind"),
    CheckConstraint("run_id IS NOT NULL OR kind = 'rejected'", name="run"),
    Index("ix_usage_tenant_id_at", "tenant_id", "at"),
    Index("ix_usage_xid", "xid"),
    info=tenant_info(grants=APPEND_GRANTS),
)


def _rollup(name: str, period: Column[Any]) -> Table:
    """Sums of the ledger over a period, made by `engine.usage.RollUp`."""
    return Table(
        name,
        metadata,
        tenant_id(primary_key=True),
        period,
        Column("kind", Text, primary_key=True),
        Column("workflow_id", Text, primary_key=True),
        Column("action", Text, primary_key=True, server_default=""),
        Column("quantity", BigInteger, nullable=False),
        Column("seconds", Double, nullable=False),
        Column("bytes_in", BigInteger, nullable=False),
        Column("bytes_out", BigInteger, nullable=False),
        of_tenant(name),
        info=tenant_info(grants=("SELECT",)),
    )


usage_hourly = _rollup("usage_hourly", Column("hour", DateTime(timezone=True), primary_key=True))
usage_monthly = _rollup("usage_monthly", Column("period", Date, primary_key=True))

usage_rollups = Table(
    "usage_rollups",
    metadata,
    Column("name", Text, primary_key=True),
    Column("xid", BigInteger, nullable=False, doc="the ledger's rows of transactions before this one are rolled up"),
    Column("cluster", BigInteger, nullable=False, server_default="0", doc="whose numbers these are; 0 is not known"),
    Column("from_id", BigInteger, nullable=False, server_default="0", doc="rows up to here came from another cluster"),
    info=tenant_info(visible="true", grants=("SELECT",)),
)

quota_counters = Table(
    "quota_counters",
    metadata,
    tenant_id(primary_key=True),
    Column("period", Date, primary_key=True, doc="the first day of a month, UTC"),
    Column("slot", SmallInteger, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False, doc="executions admitted; what counts is the sum over the slots"),
    Column("room", BigInteger, nullable=False, doc="how many more this slot may admit before somebody must count"),
    Column("monthly", BigInteger, doc="the limits that the room was divided by"),
    Column("queued", BigInteger),
    Column("version", BigInteger, nullable=False, server_default="0", doc="of these limits"),
    of_tenant("quota_counters"),
    postgresql_with={"fillfactor": 50},
    info=tenant_info(grants=("SELECT", "INSERT", "UPDATE")),
)

quota_notices = Table(
    "quota_notices",
    metadata,
    tenant_id(primary_key=True),
    Column("period", Date, primary_key=True, doc="the first day of a month, UTC"),
    Column("percent", SmallInteger, primary_key=True, autoincrement=False),
    Column("used", BigInteger, nullable=False, doc="executions, when it was made"),
    Column("monthly", BigInteger, nullable=False, doc="the limit, when it was made"),
    moment("at", now=True),
    of_tenant("quota_notices"),
    info=tenant_info(grants=APPEND_GRANTS),
)

notice_deliveries = Table(
    "notice_deliveries",
    metadata,
    tenant_id(primary_key=True),
    Column("period", Date, primary_key=True),
    Column("percent", SmallInteger, primary_key=True, autoincrement=False),
    Column("channel", Text, primary_key=True),
    Column("target", Text, primary_key=True, doc="of a mail the user; a webhook goes where the organization says then"),
    Column("state", Text, nullable=False, server_default="pending"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    moment("due_at", now=True),
    moment("sent_at"),
    Column("error", Text, doc="of the last attempt"),
    in_tenant(
        name="fk_notice_deliveries_notice",
        target="quota_notices",
        columns=("period", "percent"),
        keys=("period", "percent"),
    ),
    CheckConstraint(one_of("channel", ("webhook", "mail")), name="channel"),
    CheckConstraint(one_of("state", ("pending", "sent", "given_up")), name="state"),
    CheckConstraint("(state = 'sent') = (sent_at IS NOT NULL)", name="sent"),
    Index("ix_notice_deliveries_due_at", "due_at", postgresql_where=text("state = 'pending'")),
    info=tenant_info(grants=APPEND_GRANTS),
)

notice_targets = Table(
    "notice_targets",
    metadata,
    tenant_id(primary_key=True),
    Column("url", Text, nullable=False),
    Column("salt", Text, nullable=False, doc="what the secret of the signatures is made from, besides our own"),
    moment("updated_at", now=True),
    of_tenant("notice_targets"),
    info=tenant_info(),
)
