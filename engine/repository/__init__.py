"""Every query, one module for each aggregate: identity, workflows, triggers, credentials, runs, execution.

Functions take a `TenantSession` and so cannot leave the tenant; the few that look across tenants take a `SystemSession`
and say why. They return plain mappings; they never commit. The hot statements are named in ``engine/sql/queries.sql``.
"""
