"""The tables behind ``/metrics``: what happened to runs lately, the totals, and which tenants have a label.

No tenant sees any of it. A tenant that is erased takes its totals with it; what it had in ``other`` stays there.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from engine.schema import metadata, one_of, tenant_info

# Written by triggers of `runs`; the roll-up takes the rows away.
metric_events = Table(
    "metric_events",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("seconds", Double, nullable=False, doc="since it was queued"),
    Column("status", Text, doc="that it ended with"),
    Column("trigger", Text),
    CheckConstraint(one_of("kind", ("begun", "ended")), name="kind"),
    info=tenant_info(visible="false", grants=("INSERT",)),
)

metric_tenants = Table(
    "metric_tenants",
    metadata,
    Column(
        "tenant", Text, ForeignKey("tenants.id", name="fk_metric_tenants_tenant", ondelete="CASCADE"), primary_key=True
    ),
    Column("score", Double, nullable=False, doc="the logarithm of what it used lately, see `rank_tenants`"),
    Column("shown", Boolean, nullable=False, server_default=text("false"), doc="whether it has a label of its own"),
    Index("ix_metric_tenants_shown", "tenant", postgresql_where=text("shown")),
    postgresql_with={"fillfactor": 50},
    info=tenant_info(visible="false", grants=()),
)

metric_totals = Table(
    "metric_totals",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "tenant",
        Text,
        ForeignKey("tenants.id", name="fk_metric_totals_tenant", ondelete="CASCADE"),
        doc="NULL for the others, and where there is no such label",
    ),
    Column("series", Text, nullable=False),
    Column("labels", ARRAY(Text), nullable=False, doc="the values of its other labels; of a bucket its bound"),
    Column("value", Double, nullable=False),
    UniqueConstraint("tenant", "series", "labels", name="uq_metric_totals", postgresql_nulls_not_distinct=True),
    postgresql_with={"fillfactor": 50},
    info=tenant_info(visible="false", grants=()),
)
