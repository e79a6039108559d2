"""A Postgres of one's own, as docs/operations.md tells to set it up: no superuser, and processes that own nothing."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import migrations
from embedded.postgres import DATABASE, PostgresServer
from engine.db import Database
from tests.engine_parts import parts_for

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def server(tmp_path: Path) -> PostgresServer:
    """A server of this test alone: roles belong to a whole server."""
    return PostgresServer(tmp_path / "postgres", fast=True)


def url_of(server: PostgresServer, user: str, password: str) -> str:
    return f"postgresql+psycopg://{user}:{password}@127.0.0.1:{server.port}/fairlane"


def execute(url: str, statements: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in filter(str.strip, statements.split(";")):
            connection.execute(statement.encode())


def test_what_the_page_says_is_enough_to_migrate_and_to_run(server: PostgresServer) -> None:
    make_owner, make_app = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    server.start()
    try:
        superuser = server.url.removesuffix(DATABASE) + "postgres"
        execute(superuser, f"DROP DATABASE {DATABASE}")
        execute(superuser, make_owner)
        owner, app = (
            url_of(server, user, password.replace(" ", "%20"))
            for user, password in re.findall(r"ROLE (\w+) LOGIN.* PASSWORD '(.*?)'", make_owner + make_app)
        )
        migrations.upgrade(owner)
        execute(owner, make_app)
        for url in (owner, app):
            with closing(Database(url, pool_size=1)) as database:
                database.verify()
        with parts_for(app) as parts:
            run = parts.execute({"id": "echo", "action": "debug.echo", "with": {"text": "hello"}})
        assert (run["status"], run["output"]) == ("succeeded", {"text": "hello"})
    finally:
        server.stop()
