"""What tests of triggers share: a tenant, the service that saves workflows, and what runs there are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

import actions
from engine.db import Database, Row
from engine.definition import parse
from engine.errors import Unavailable
from engine.ports import Action, PollMessage, PollSource, RunMessage
from engine.runs import Runs
from engine.vault import MasterKeyRing, Vault
from engine.workflows import Author, Workflows
from triggers import KINDS, SOURCES

ECHO = {"id": "echo", "action": "debug.echo", "with": {"text": "hello"}}
AUTHOR = Author("user_1")


class Broker:
    """A `Publisher` that keeps what it is given, and that can be down."""

    def __init__(self) -> None:
        self.runs: dict[str, RunMessage] = {}
        self.polls: list[PollMessage] = []
        self.down = False

    def publish(self, messages: Iterable[RunMessage]) -> None:
        self._answer()
        self.runs.update({message.id: message for message in messages})

    def publish_poll(self, message: PollMessage) -> None:
        self._answer()
        self.polls.append(message)

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return self.runs.keys() & set(message_ids)

    def _answer(self) -> None:
        if self.down:
            raise Unavailable("The broker does not answer.")


@dataclass
class Parts:
    """Tenants ``a`` and ``b`` without workflows."""

    database: Database
    registry: Mapping[str, Action]
    sources: Mapping[str, PollSource] = field(default_factory=lambda: SOURCES)
    broker: Broker = field(default_factory=Broker)

    def __post_init__(self) -> None:
        self.vault = Vault(MasterKeyRing({"k": b"1" * 32}))
        self.runs = Runs(self.broker)
        self.workflows = Workflows(self.registry, KINDS, self.vault)

    def save(self, trigger: Mapping[str, Any], *, tenant: str = "a", workflow_id: str | None = None) -> str:
        """Save a workflow of one step, new or changed; its id."""
        document = {"name": "W", "trigger": trigger, "steps": [ECHO]}
        workflow = parse(document, actions=self.registry, sources=self.sources)
        with self.database.tenant(tenant) as session:
            if workflow_id is None:
                row = self.workflows.create(session, workflow, author=AUTHOR)
            else:
                row = self.workflows.update(session, workflow_id, workflow, author=AUTHOR)
        return str(row["id"])

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        with self.database.system() as session:
            return session.rows(sa.text(statement).bindparams(**parameters))

    def change(self, statement: str, **parameters: Any) -> None:
        with self.database.system() as session:
            session.execute(sa.text(statement).bindparams(**parameters))

    def runs_of(self, workflow_id: str) -> list[Row]:
        return self.rows("SELECT * FROM runs WHERE workflow_id = :id ORDER BY id", id=workflow_id)

    def trigger_of(self, workflow_id: str) -> Row:
        return self.rows("SELECT *, now() AS now FROM triggers WHERE workflow_id = :id", id=workflow_id)[0]


@contextmanager
def parts_for(database_url: str, **options: Any) -> Iterator[Parts]:
    with two_tenants(database_url) as database:
        yield Parts(database, actions.build(allowed_networks=("127.0.0.0/8",)), **options)


@contextmanager
def two_tenants(database_url: str) -> Iterator[Database]:
    """The database with tenants ``a`` and ``b``."""
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('a', 'A'), ('b', 'B')"))
    yield database
    database.close()
