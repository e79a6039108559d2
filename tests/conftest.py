"""Fixtures shared by all layers: real servers, started once for each test process and never shared between them.

A test that asks for `database_url` gets a database of its own: the migrations run once for each test process, into a
template that Postgres then copies in some tens of milliseconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
import redis
from psycopg import sql

import migrations
from embedded.postgres import DATABASE, PostgresServer
from embedded.redis import RedisServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A redis-server of this test process alone, so a test may flush it."""
    folder: Path = tmp_path_factory.mktemp("redis")
    server = RedisServer(folder).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A Postgres of this test process alone; its URL is that of a superuser and an empty database."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres"), fast=True).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a database at the newest migration, to be copied and never connected to."""
    with fresh_database(postgres_server) as url:
        migrations.upgrade(url)
        yield url.rpartition("/")[2]


@pytest.fixture
def database_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """The URL of a migrated database that only this test uses; ``postgresql+psycopg://`` with a superuser."""
    with fresh_database(postgres_server, template=migrated_template) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """Like `database_url`, shared by the tests of one file."""
    with fresh_database(postgres_server, template=migrated_template) as url:
        yield url


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a database without any table, for tests of the migrations themselves."""
    with fresh_database(postgres_server) as url:
        yield url


@contextmanager
def fresh_database(server: PostgresServer, *, template: str = "template1") -> Iterator[str]:
    """A copy of `template`, dropped at the end with whoever is still connected."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
    try:
        yield server.url.removesuffix(DATABASE) + name
    finally:
        with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
