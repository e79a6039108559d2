"""``fairlane doctor``: is everything there that the engine needs, and is it fit for it?

Each check is one line, each fault one sentence that says what to do. It changes nothing and starts nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import typer

from cli import commands, schema
from cli.options import DEFAULT_DATA, AsJson, Data
from cli.output import sentence_for, show_json
from embedded.home import URLS, Home
from engine.errors import ConfigurationError, FairlaneError

if TYPE_CHECKING:
    import psycopg
    import redis

    from engine.db import Database
    from engine.settings import Settings

MINIMUM_POSTGRES = 15
MINIMUM_REDIS = (6, 2)
SECONDS_TO_CONNECT = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found; `fault` is None when all is well."""

    check: str
    fact: str
    fault: str | None = None


def doctor(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Check database, Redis, keys and versions; exit 1 with a sentence for each fault."""
    findings = examine(data)
    if as_json:
        show_json({"ok": not any(one.fault for one in findings), "checks": [asdict(one) for one in findings]})
    else:
        for one in findings:
            typer.echo(f"{'fault' if one.fault else 'ok':<6}{one.check:<14}{one.fact}")
            if one.fault:
                typer.echo(one.fault, err=True)
    if any(one.fault for one in findings):
        raise typer.Exit(1)


def examine(data: Any) -> list[Finding]:
    """All checks; those that need what another found missing are left out."""
    try:
        settings = commands.configured(data)
    except ConfigurationError as error:
        return [Finding("settings", "incomplete", error.detail + _asleep(Home(data)))]
    return [
        _extras(settings),
        *_safely("postgres", lambda: _postgres(settings.database_url, ring=settings.master_key_ring)),
        *_safely("redis", lambda: _redis(settings.redis_url)),
    ]


def _extras(settings: Settings) -> Finding:
    try:
        commands.require_extras(settings)
    except ConfigurationError as error:
        return Finding("settings", "no process can start", error.detail)
    return Finding("settings", f"complete; master keys: {', '.join(settings.master_key_ring)}")


def _asleep(home: Home) -> str:
    """What else to say when a URL is missing because the embedded servers of a folder do not run."""
    if not home.env_file.exists() or all(url in os.environ or url in home.read_env() for url in URLS):
        return ""
    return f" Or start `fairlane up`, which runs those of {home.folder}, and ask again: the doctor starts nothing."


def _safely(check: str, findings: Callable[[], list[Finding]]) -> list[Finding]:
    import psycopg
    import redis

    try:
        return findings()
    except (FairlaneError, psycopg.Error, redis.RedisError) as error:
        return [Finding(check, "unreachable", sentence_for(error) or str(error))]


def _postgres(url: str, *, ring: Mapping[str, bytes]) -> list[Finding]:
    with schema.connection_to(url, seconds=SECONDS_TO_CONNECT) as connection:
        version = connection.info.server_version // 10000
        fault = None
        if version < MINIMUM_POSTGRES:
            fault = f"Postgres {version} is too old: use {MINIMUM_POSTGRES} or newer."
        findings = [Finding("postgres", f"version {version}", fault), _schema(connection)]
    if not any(one.fault for one in findings):
        findings += _inside(url, ring)
    return findings


def _schema(connection: psycopg.Connection[Any]) -> Finding:
    return Finding("schema", f"revision {schema.revision(connection) or 'none'}", schema.fault(connection))


def _inside(url: str, ring: Mapping[str, bytes]) -> list[Finding]:
    """Would row-level security hold, and are all secrets under known keys? Asked of the engine itself."""
    from engine.db import Database

    database = Database(url, pool_size=1)
    try:
        database.verify()
        return [Finding("isolation", "row-level security holds"), _data_keys(database, ring)]
    except ConfigurationError as error:
        return [Finding("isolation", "not guaranteed", error.detail)]
    finally:
        database.close()


def _data_keys(database: Database, ring: Mapping[str, bytes]) -> Finding:
    from engine import vault
    from engine.repository import operator

    fault = None
    with database.system() as session:
        used = operator.master_keys(session)
        try:
            vault.require_fitting(session, ring)
        except ConfigurationError as error:
            fault = error.detail
    if missing := [row["id"] for row in used if row["id"] not in ring]:
        fault = f"Secrets are under {', '.join(missing)}, which FAIRLANE_MASTER_KEYS lacks: add it, after the first."
    return Finding("data keys", f"{sum(row['data_keys'] for row in used):,}", fault)


def _refused(client: redis.Redis) -> str | None:
    """Its disk or memory may be full, or it is a replica. Asked with a write that changes nothing."""
    from redis.exceptions import ResponseError

    try:
        client.set("{runs}:doctor", "", xx=True)  # of a key that is not there
    except ResponseError as error:
        return f"Redis takes no writes ({error}); runs are stored and wait."
    return None


def _redis(url: str) -> list[Finding]:
    if url.startswith("sentinel://"):
        return [Finding("redis", "behind Sentinel: ask the sentinels for its version and maxmemory-policy")]
    import redis

    with redis.Redis.from_url(url, socket_timeout=SECONDS_TO_CONNECT, decode_responses=True) as client:
        version = str(client.info("server")["redis_version"])
        policy = str(client.info("memory").get("maxmemory_policy", "unknown"))
        refused = _refused(client)
    too_old = tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_REDIS
    eviction = policy not in ("noeviction", "unknown")
    return [
        Finding(
            "redis", f"version {version}", f"Redis {version} is too old: use 6.2 or newer." if too_old else refused
        ),
        Finding(
            "redis memory",
            f"maxmemory-policy {policy}",
            f"Redis may throw queued work away: set maxmemory-policy to noeviction, not {policy}."
            if eviction
            else None,
        ),
    ]
