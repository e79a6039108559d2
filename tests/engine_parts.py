"""The parts of an engine put together for a test: real Postgres, evaluator and actions, and a list for a broker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import sqlalchemy as sa

import actions
from engine.answers import Answer
from engine.db import Database, Row, dump_json
from engine.definition import canonical, parse
from engine.executor import Executor
from engine.expressions import Evaluator
from engine.pipeline import Tools
from engine.ports import PollMessage, RunMessage
from engine.repository import credentials
from engine.resume_links import ResumeLinks
from engine.runs import Runs, Start
from engine.sweeper import Sweeper
from engine.vault import MasterKeyRing, Vault


class ListPublisher:
    """A `Publisher` that keeps messages in a dict: the same id twice is one message."""

    def __init__(self) -> None:
        self.messages: dict[str, RunMessage] = {}
        self.polls: dict[str, PollMessage] = {}

    def publish(self, messages: Iterable[RunMessage]) -> None:
        self.messages.update({message.id: message for message in messages})

    def publish_poll(self, message: PollMessage) -> None:
        self.polls[message.id] = message

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return self.messages.keys() & set(message_ids)


@dataclass
class Parts:
    """One tenant ``acme`` and what is needed to give it workflows and execute them in this process."""

    database: Database
    vault: Vault
    registry: dict[str, Any]
    evaluator: Evaluator
    publisher: ListPublisher = field(default_factory=ListPublisher)
    tenant: str = "acme"
    url: str = ""

    def __post_init__(self) -> None:
        self.runs = Runs(self.publisher)
        self.links = ResumeLinks("s" * 40, "https://fairlane.example")
        self.executor = self.another_worker()

    def another_worker(self) -> Executor:
        return Executor(Tools(self.database, self.vault, self.registry, self.evaluator, self.runs, self.links))

    def workflow(self, *steps: dict[str, Any], name: str = "W", workflow_id: str = "wf_1", **more: Any) -> str:
        """Store a workflow with a manual trigger and `more` keys of a document; returns its id."""
        document = {"name": name, "trigger": {"type": "manual"}, "steps": list(steps), **more}
        stored = canonical(parse(document, actions=self.registry, sources={}, evaluator=self.evaluator))
        with self.database.tenant(self.tenant) as session:
            session.execute(
                sa.text(
                    "INSERT INTO workflows (id, tenant_id, name, trigger_type, version)"
                    " VALUES (:id, :tenant, :name, 'manual', 1)"
                ),
                {"id": workflow_id, "tenant": self.tenant, "name": name},
            )
            session.execute(
                sa.text(
                    "INSERT INTO workflow_versions (tenant_id, workflow_id, version, definition, hash)"
                    " VALUES (:tenant, :id, 1, cast(:definition AS jsonb), 'h')"
                ),
                {"id": workflow_id, "tenant": self.tenant, "definition": dump_json(stored)},
            )
        return workflow_id

    def credential(self, service: str, data: dict[str, Any], *, name: str | None = None) -> None:
        with self.database.tenant(self.tenant) as session:
            sealed = self.vault.seal(session, f"cred_{name or service}", data)
            row = {
                "id": f"cred_{name or service}",
                "service_name": service,
                "name": name or service,
                "ciphertext": sealed.ciphertext,
                "key_version": sealed.key_version,
                "fingerprint": sealed.fingerprint,
            }
            credentials.insert_credential(session, row)

    def start(self, workflow_id: str = "wf_1", **options: Any) -> str:
        request = Start(**{"workflow_id": workflow_id, "trigger": "api", "input": {"input": {}}, **options})
        with self.database.tenant(self.tenant) as session:
            run_id: str = self.runs.start(session, request).run["id"]
        return run_id

    def let_pass(self, **duration: float) -> None:
        """Let everything that waits in the database have waited for so long more."""
        with self.database.system() as session:
            for table in ("runs", "steps"):
                session.execute(
                    sa.text(f"UPDATE {table} SET wake_at = wake_at - cast(:passed AS interval)"),
                    {"passed": timedelta(**duration)},
                )

    def silence(self) -> None:
        """Whoever has runs in hand has said nothing for a minute."""
        self.fill("UPDATE runs SET heartbeat_at = now() - interval '1 minute' WHERE status = 'running'")

    def fill(self, statement: str) -> None:
        """Run a statement over all tenants."""
        engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    def sweep_and_run(self, *, tenant: str = "acme") -> list[str]:
        """One sweep, then a worker for each message that is there; the ids of the runs that it had, in order."""
        Sweeper(self.database, self.publisher, runs=self.runs).run_once()
        messages, self.publisher.messages = list(self.publisher.messages.values()), {}
        for message in messages:
            self.another_worker().run(tenant, message.run_id)
        return [message.run_id for message in messages]

    def execute(self, *steps: dict[str, Any], **options: Any) -> Row:
        """Store a workflow, start it once, execute it here; the run's row."""
        run_id = self.start(self.workflow(*steps), **options)
        self.publisher.messages.pop(run_id)
        self.executor.run(self.tenant, run_id)
        return self.run_row(run_id)

    def run_row(self, run_id: str) -> Row:
        return self.rows("SELECT * FROM runs WHERE id = :id", id=run_id)[0]

    def steps_of(self, run_id: str) -> dict[str, Row]:
        """By id; items as ``id:item``."""
        rows = self.rows("SELECT * FROM steps WHERE run_id = :id", id=run_id)
        return {":".join(filter(None, (row["step_id"], row["item"]))): row for row in rows}

    def statuses(self, run_id: str) -> dict[str, str]:
        return {step: row["status"] for step, row in self.steps_of(run_id).items()}

    def resume(self, run_id: str, **answer: Any) -> Any:
        with self.database.tenant(self.tenant) as session:
            return self.runs.resume(session, run_id, Answer(**{"approved": True, "by": "user_ada", **answer}))

    def cancel(self, run_id: str) -> bool:
        with self.database.tenant(self.tenant) as session:
            return self.runs.cancel(session, run_id, by="user_ada")

    def lines_of(self, run_id: str) -> list[Row]:
        return self.rows("SELECT * FROM execution_logs WHERE run_id = :id ORDER BY seq", id=run_id)

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        with self.database.system() as session:
            return session.rows(sa.text(statement).bindparams(**parameters))


@contextmanager
def parts_for(database_url: str, **more_actions: Any) -> Iterator[Parts]:
    """Parts over a migrated, empty database; `more_actions` are added to the registry under their own names."""
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')"))
    registry = actions.build(allowed_networks=("127.0.0.0/8",))
    with Evaluator(children=1) as evaluator:
        added = {action.name: action for action in more_actions.values()}
        yield Parts(
            database, Vault(MasterKeyRing({"k": b"1" * 32})), {**registry, **added}, evaluator, url=database_url
        )
    database.close()
