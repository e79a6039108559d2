"""Transactions on Postgres, each bound to one tenant or openly to the whole system.

`Database.tenant` and `Database.system` each open one transaction, commit it when the block ends and roll it back when
it raises. Its first statement switches, for this transaction only, to a role that is neither owner nor superuser and
names the tenant; row-level security does the rest. The two sessions are distinct types: what takes a `TenantSession`
cannot be handed a `SystemSession` by mistake.

When Postgres cannot be reached, or breaks off, this raises `engine.errors.Unavailable`, and nothing of the transaction
has happened, with one exception that no client can rule out: when the answer to COMMIT is lost. What passes a limit of
Postgres itself (SQLSTATE class 54) raises `TooLarge` instead: it would do so at every attempt. Connections that died
while they were idle are replaced unseen. A wait for a lock ends well before a statement that takes too long does, so
the two are told apart: what somebody else holds is no fault of the statement.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import psycopg
import pydantic_core
import sqlalchemy
from psycopg import sql
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import dict_row
from psycopg.types import json as psycopg_json
from sqlalchemy import exc

from engine.errors import ConfigurationError, Locked, StatementTimeout, TooLarge, Unavailable
from engine.sql import QUERIES

TENANT_ROLE = "fairlane_tenant"
"""Sees the rows of the tenant in ``app.tenant_id``, and nothing without it."""
SYSTEM_ROLE = "fairlane_system"
"""Sees all rows."""

MINIMUM_VERSION = 15
CONNECT = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    # Whatever the database prefers: only ISO is read back as a time.
    "options": "-c datestyle=ISO -c statement_timeout=60s -c lock_timeout=10s"
    " -c idle_in_transaction_session_timeout=120s",
    "application_name": "fairlane",
}

_BEGIN = sql.SQL("BEGIN; SELECT set_config('role', {role}, true), set_config('app.tenant_id', {tenant}, true)")
_ACT = "SELECT set_config('role', %s, true), set_config('app.tenant_id', %s, true)"
_LOST = (psycopg.OperationalError, psycopg.InterfaceError, exc.OperationalError, exc.InterfaceError, exc.TimeoutError)
_READ_ONLY = (psycopg.errors.ReadOnlySqlTransaction, exc.InternalError)


_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
"""An escaped NUL; behind an odd number of backslashes it is only text that looks like one."""


def dump_json(value: Any) -> str:
    """Compact JSON text that jsonb takes: NUL becomes U+FFFD, infinities and NaN become null."""
    text = pydantic_core.to_json(value, inf_nan_mode="null").decode()
    return _NUL.sub("\\1\ufffd", text) if "\\u0000" in text else text


psycopg_json.set_json_dumps(dump_json)
psycopg_json.set_json_loads(pydantic_core.from_json)


Row: TypeAlias = dict[str, Any]


class Session:
    """One open transaction."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection
        self._after_commit: list[Callable[[], None]] = []

    def execute(
        self, statement: sqlalchemy.Executable, parameters: Any = None
    ) -> sqlalchemy.CursorResult[*tuple[Any, ...]]:
        """Run a SQLAlchemy Core statement."""
        return self._connection.execute(statement, parameters)

    def rows(self, statement: sqlalchemy.Executable) -> list[Row]:
        """Run it; every row as a dict."""
        return [dict(row) for row in self._connection.execute(statement).mappings()]

    def row(self, statement: sqlalchemy.Executable) -> Row | None:
        """Run it; the first row as a dict, None when there is none."""
        found = self._connection.execute(statement).mappings().first()
        return None if found is None else dict(found)

    def query(self, name: str, /, **parameters: Any) -> list[Row]:
        """Run a hot statement of ``sql/queries.sql`` on the driver; its rows as dicts, empty when it returns none."""
        cursor = _driver(self._connection).cursor(row_factory=dict_row)
        cursor.execute(QUERIES[name].text, parameters)
        return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        """When the block raises, what it wrote is undone and its callbacks are forgotten; the transaction can go on."""
        driver, before = _driver(self._connection), len(self._after_commit)
        driver.execute("SAVEPOINT block")
        try:
            yield
        except BaseException:
            driver.execute("ROLLBACK TO block")
            del self._after_commit[before:]
            raise
        driver.execute("RELEASE block")

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call it once the transaction is durable; never when it rolls back. It must not raise."""
        self._after_commit.append(callback)

    def committed(self) -> None:
        for callback in self._after_commit:
            callback()


class TenantSession(Session):
    """A transaction that sees one tenant's rows only."""

    def __init__(self, connection: sqlalchemy.Connection, tenant_id: str) -> None:
        super().__init__(connection)
        self.tenant_id = tenant_id


class SystemSession(Session):
    """A transaction over all tenants: for schedulers, sweeps and finding out who is calling. Nothing else."""

    @contextlib.contextmanager
    def acting_for(self, tenant_id: str) -> Iterator[TenantSession]:
        """Work as one tenant for a while, inside the same transaction."""
        driver = _driver(self._connection)
        driver.execute(_ACT, (TENANT_ROLE, tenant_id))
        session = TenantSession(self._connection, tenant_id)
        session._after_commit = self._after_commit
        try:
            yield session
        finally:
            if driver.info.transaction_status is TransactionStatus.INTRANS:  # else its rollback undoes this, too
                driver.execute(_ACT, (SYSTEM_ROLE, ""))


class Database:
    """A pool of connections, and the two ways to open a transaction. Threads may share it; see `after_fork`."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self._engine = sqlalchemy.create_engine(
            url,
            pool_size=pool_size,
            max_overflow=pool_size,
            pool_timeout=10,
            isolation_level="AUTOCOMMIT",  # BEGIN and COMMIT are ours, so that BEGIN carries role and tenant
            json_serializer=dump_json,
            json_deserializer=pydantic_core.from_json,
            connect_args=CONNECT,
        )

    @contextlib.contextmanager
    def tenant(self, tenant_id: str) -> Iterator[TenantSession]:
        """One transaction as `tenant_id`."""
        if not tenant_id:
            raise ValueError("a tenant session needs a tenant id")
        with self._transaction(TENANT_ROLE, tenant_id) as connection:
            session = TenantSession(connection, tenant_id)
            yield session
        session.committed()

    @contextlib.contextmanager
    def system(self) -> Iterator[SystemSession]:
        """One transaction over all tenants."""
        with self._transaction(SYSTEM_ROLE, "") as connection:
            session = SystemSession(connection)
            yield session
        session.committed()

    def after_fork(self) -> None:
        """In a child process: forget the parent's connections without closing them."""
        self._engine.dispose(close=False)

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self, role: str, tenant_id: str) -> Iterator[sqlalchemy.Connection]:
        try:
            connection = self._begin(role, tenant_id)
        except _LOST as error:
            raise Unavailable("The database does not answer", cause=_cause(error)) from error
        try:
            yield connection
            _send(connection, b"COMMIT")
        except _LOST as error:
            if _asks_too_much(error):
                self._roll_back(connection)
                raise TooLarge(f"The database cannot take that ({_cause(error)}).") from error
            if _state(error) == psycopg.errors.LockNotAvailable.sqlstate:
                self._roll_back(connection)
                raise Locked("Somebody else holds what is wanted", cause=_cause(error)) from error
            connection.invalidate()
            raise _outage(error) from error
        except _READ_ONLY as error:
            if _state(error) != psycopg.errors.ReadOnlySqlTransaction.sqlstate:
                self._roll_back(connection)
                raise
            connection.invalidate()  # after a failover another server takes writes
            raise Unavailable("The database takes no writes", cause=_cause(error)) from error
        except BaseException:
            self._roll_back(connection)
            raise
        finally:
            connection.close()

    def _begin(self, role: str, tenant_id: str) -> sqlalchemy.Connection:
        statement = _beginning(role, tenant_id)
        for _ in range(self._engine.pool.size() + 1):  # type: ignore[attr-defined]
            connection = self._engine.connect()
            try:
                _send(connection, statement)
            except _LOST:  # it died while it was idle: nothing was lost, take the next
                connection.invalidate()
                connection.close()
            else:
                return connection
        connection = self._engine.connect()
        _send(connection, statement)
        return connection

    @staticmethod
    def _roll_back(connection: sqlalchemy.Connection) -> None:
        try:
            _send(connection, b"ROLLBACK")
        except _LOST:
            connection.invalidate()

    def verify(self) -> None:
        """Refuse, with one sentence for each fault, a server or roles that would not keep tenants apart."""
        try:
            with self.system() as session:
                faults = [*_version_faults(session), *_role_faults(session)]
        except psycopg.errors.InvalidParameterValue as error:
            raise ConfigurationError("The database has no schema of ours yet; run `fairlane migrate`.") from error
        if faults:
            raise ConfigurationError(" ".join(faults))


@lru_cache(maxsize=4096)
def _beginning(role: str, tenant_id: str) -> bytes:
    """The statement that begins a transaction, its literals quoted; encoded once per tenant and not once per run."""
    return _BEGIN.format(role=role, tenant=tenant_id).as_bytes(None)


def _driver(connection: sqlalchemy.Connection) -> psycopg.Connection[Any]:
    driver: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    return driver


def _send(connection: sqlalchemy.Connection, statements: bytes) -> None:
    """Run statements without parameters and rows: by libpq itself, which costs a tenth of a cursor."""
    driver = _driver(connection)
    result = driver.pgconn.exec_(statements)
    if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        if driver.closed or driver.broken:
            raise psycopg.OperationalError(result.get_error_message())
        raise psycopg.errors.error_from_result(result)


def _asks_too_much(error: Exception) -> bool:
    """Whether a limit of Postgres is passed (class 54), which its driver calls operational: it is, at every attempt."""
    return (_state(error) or "").startswith("54")


def _outage(error: Exception) -> Unavailable:
    if _state(error) == psycopg.errors.QueryCanceled.sqlstate:
        return StatementTimeout("A statement took too long and was ended", cause=_cause(error))
    return Unavailable("The database broke off", cause=_cause(error))


def _state(error: Exception) -> str | None:
    """The SQLSTATE, where the server said one."""
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None)


def _cause(error: BaseException) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0] or type(error).__name__


def _version_faults(session: SystemSession) -> Iterator[str]:
    version = int(session.execute(sqlalchemy.text("SHOW server_version_num")).scalar_one()) // 10000
    if version < MINIMUM_VERSION:
        yield f"Postgres {version} is too old; want {MINIMUM_VERSION} or newer."


def _role_faults(session: SystemSession) -> Iterator[str]:
    rows = session.execute(
        sqlalchemy.text(
            "SELECT r.rolname, r.rolsuper, r.rolbypassrls, r.rolcanlogin, EXISTS (SELECT 1 FROM pg_class c"
            " WHERE c.relowner = r.oid AND c.relkind IN ('r', 'p', 'v', 'm')) AS owns FROM pg_roles r"
            " WHERE r.rolname = ANY (:roles)"
        ),
        {"roles": [TENANT_ROLE, SYSTEM_ROLE]},
    )
    for row in rows.mappings():
        for column, fault in {
            "rolsuper": "is a superuser",
            "rolbypassrls": "bypasses row-level security",
            "rolcanlogin": "can log in",
            "owns": "owns a table",
        }.items():
            if row[column]:
                yield f"The role {row['rolname']} {fault}, so tenants would not be kept apart; take that from it."
    unguarded = session.execute(
        sqlalchemy.text(
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')"
            " AND a.attname = 'tenant_id' AND NOT c.relforcerowsecurity ORDER BY 1"
        )
    )
    for table in unguarded.scalars():
        yield f"The table {table} has no forced row-level security; run `fairlane migrate`."
