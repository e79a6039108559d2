"""What all tables are made with: the columns and keys of what belongs to a tenant, and who may see it.

See `engine.models` for what they promise.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, ForeignKeyConstraint, MetaData, Text, func

CURRENT_TENANT = "nullif(current_setting('app.tenant_id', true), '')"

FULL_GRANTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
APPEND_GRANTS = ("SELECT", "INSERT")
ROLES = ("owner", "admin", "member", "viewer")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def tenant_info(*, visible: str = f"tenant_id = {CURRENT_TENANT}", grants: tuple[str, ...] = FULL_GRANTS) -> Any:
    return {"visible": visible, "grants": grants}


def tenant_id(*, primary_key: bool = False) -> Column[str]:
    return Column("tenant_id", Text, primary_key=primary_key, nullable=False)


def moment(name: str, *, nullable: bool = True, now: bool = False) -> Column[Any]:
    default = func.now() if now else None
    return Column(name, DateTime(timezone=True), nullable=nullable and not now, server_default=default)


def one_of(column: str, values: Any) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


def in_tenant(*, name: str, target: str, columns: tuple[str, ...], keys: tuple[str, ...]) -> ForeignKeyConstraint:
    """A foreign key that cannot leave the tenant, and follows when a workflow moves to another."""
    return ForeignKeyConstraint(
        ("tenant_id", *columns),
        [f"{target}.{key}" for key in ("tenant_id", *keys)],
        name=name,
        onupdate="CASCADE",
        ondelete="CASCADE",
    )


def of_tenant(table: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(("tenant_id",), ["tenants.id"], name=f"fk_{table}_tenant_id", ondelete="CASCADE")
