"""What recording a decryption costs a step, beside adding a row to the audit's chain instead.

    python -m bench.decryptions

One transaction stores an intent and fetches a credential, as a step does before its action. `nothing` only does this;
`recorded` is what Fairlane does; `chained` adds a row to the audit. Each with one thread, and with eight of one tenant.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import sqlalchemy as sa

import migrations
from embedded.postgres import PostgresServer
from engine.audit import Actor, record
from engine.db import Database, TenantSession
from engine.repository import credentials
from engine.sql import QUERIES, Query
from engine.vault import MasterKeyRing, Vault

TIMES, ROUNDS = 400, 5
STEP = {"run_id": "run_0193", "step_id": "notify", "attempt": 1}


PARAMETERS = {"tenant_id": "acme", "name": "slack", "service": "slack", **STEP}
FETCH = QUERIES["credential_for_step"]
QUERIES["intent"] = Query(
    "intent", "", "INSERT INTO poll_items (tenant_id, workflow_id, item_id) VALUES ('acme', 'wf', %(id)s)"
)
QUERIES["fetch"] = Query("fetch", "", FETCH.text.partition(", recorded AS")[0] + " SELECT * FROM found ORDER BY id")


def nothing(session: TenantSession) -> None:
    session.query("intent", id=uuid.uuid4().hex)
    session.query("fetch", **PARAMETERS)


def recorded(session: TenantSession) -> None:
    session.query("intent", id=uuid.uuid4().hex)
    session.query("credential_for_step", **PARAMETERS)


def chained(session: TenantSession) -> None:
    nothing(session)
    record(session, Actor("run_0193"), "credential.decrypted", "cred_1", step="notify")


def measure(database: Database, work: Callable[[TenantSession], None], threads: int) -> float:
    """Transactions per second."""

    def loop() -> None:
        for _ in range(TIMES):
            with database.tenant("acme") as session:
                work(session)

    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: loop(), range(threads)))
    return TIMES * threads / (time.perf_counter() - began)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = PostgresServer(Path(folder)).start()
        try:
            migrations.upgrade(server.url)
            _run(server.url)
        finally:
            server.stop()


def _run(url: str) -> None:
    database = Database(url, pool_size=10)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')"))
    with database.tenant("acme") as session:
        sealed = Vault(MasterKeyRing({"k": b"1" * 32})).seal(session, "cred_1", {"webhook_url": "https://example.com"})
        values = {"ciphertext": sealed.ciphertext, "key_version": sealed.key_version}
        session.execute(
            sa.text("INSERT INTO workflows (id, tenant_id, name, trigger_type) VALUES ('wf', 'acme', 'W', '')")
        )
        credentials.insert_credential(session, {"id": "cred_1", "service_name": "slack", "name": "slack", **values})
    print("transactions per second   nothing  recorded   chained")
    for threads in (1, 8):
        rates = {
            work: [measure(database, work, threads) for _ in range(ROUNDS)] for work in (nothing, recorded, chained)
        }
        print(f"{threads} threads{'':17}" + "".join(f"{statistics.median(found):10,.0f}" for found in rates.values()))
    database.close()


if __name__ == "__main__":
    main()
