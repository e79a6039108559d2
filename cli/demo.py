"""The demo of ``fairlane up``: an organization in which there is something to see at once.

It has a login, an API key, a credential that its workflows share, and the workflows of ``cli/examples``: one that a
webhook starts and one that a schedule starts. Both call the receiver that `up` runs beside the engine.

`ensure` makes what is missing and leaves the rest as it is, also what a person changed meanwhile. What was generated
stands in the data folder's file ``demo``, so that each start prints the same. Everything is made in one transaction;
when the file gets lost, the next start sets another password and makes another key.
"""

from __future__ import annotations

import json
import secrets
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import actions
import triggers
from embedded.files import write_private
from engine import api_keys, connections, passwords, tenancy
from engine.db import Database, Row, SystemSession, TenantSession
from engine.definition import load, parse
from engine.errors import Forbidden, NotFound, Unauthenticated
from engine.permissions import Scope
from engine.repository import credentials, identity, operator, plans
from engine.settings import Settings
from engine.vault import MasterKeyRing, Vault
from engine.workflows import Author, Workflows

EXAMPLES = Path(__file__).parent / "examples"
ORDERS, HEARTBEAT = "receive-an-order", "heartbeat"
EXAMPLE_RECEIVER = "http://127.0.0.1:9000"
"""Where the examples say that the receiver is; the demo puts the real address in its place."""
EMAIL = "demo@example.com"
ORGANIZATION = "Demo"
CREDENTIAL = "receiver"
SCOPES = (
    Scope.RUNS_WRITE,
    Scope.RUNS_READ,
    Scope.WORKFLOWS_WRITE,
    Scope.WORKFLOWS_READ,
    Scope.CREDENTIALS_WRITE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What a newcomer needs, and where the workflows expect the receiver."""

    password: str
    api_key: str = ""
    orders: str = ""
    """Id of the webhook workflow."""
    heartbeat: str = ""
    """Id of the scheduled workflow."""
    receiver: str = EXAMPLE_RECEIVER

    def described(self, api: str) -> str:
        """What to open and what to type, for an engine that answers at `api`."""
        key = f"-H 'Authorization: Bearer {self.api_key}'"
        order = json.dumps({"customer": "Ada", "amount": 120})
        return "\n".join(
            [
                f"  Login          {EMAIL}, password {self.password}",
                f"  API key        {self.api_key}",
                "",
                "Send an order; a worker runs the workflow, and the receiver prints what it gets:",
                f"  curl {api}/api/webhooks/{self.orders} -d '{order}'",
                "See the newest run, and with the id that the first answer gave you, its log:",
                f"  curl '{api}/api/runs?limit=1' {key}",
                f"  curl {api}/api/runs/RUN_ID/logs {key}",
            ]
        )


def is_expected(settings: Settings, file: Path) -> bool:
    """Whether the demo is made unasked: where there is no organization yet, or where it was made before.

    An organization that came out of another system should find nobody beside it.
    """
    key = _read(file).api_key
    with closing(Database(settings.database_url, pool_size=1)) as database, database.system() as session:
        if not operator.tenants_listed(session, operator.TenantFilter(), after="", limit=1):
            return True
        account = identity.account(session, EMAIL)
        own = [] if account is None else tenancy.organizations(session, account)
        return any(row["name"] == ORGANIZATION or _fits(session, key, row["id"]) for row in own)


def ensure(settings: Settings, file: Path, *, receiver: str) -> Demo:
    """The demo in the database of `settings`, remembered in `file`, calling the receiver at the URL `receiver`."""
    known = _read(file)
    with closing(Database(settings.database_url, pool_size=1)) as database, closing(actions.build()) as registry:
        password_hash = _new_hash(database, known.password)
        vault = Vault(MasterKeyRing(settings.master_key_ring))
        workflows = Workflows(registry, triggers.KINDS, vault)
        with database.system() as session:
            tenant, user_id = _account(session, password_hash)
            key_fits = _fits(session, known.api_key, tenant["id"])
            with session.acting_for(tenant["id"]) as own:
                if not key_fits:
                    _, secret = api_keys.create(own, name=ORGANIZATION, scopes=SCOPES, created_by=user_id)
                    known = replace(known, api_key=secret)
                _ensure_credential(own, vault, user_id)
                saver = _Saver(own, workflows, registry, Author(user_id, user_id), known.receiver, receiver)
                orders = saver.ensure(ORDERS, known.orders)
                heartbeat = saver.ensure(HEARTBEAT, known.heartbeat)
    demo = replace(known, orders=orders, heartbeat=heartbeat, receiver=receiver)
    write_private(file, json.dumps(asdict(demo), indent=2))
    return demo


def _read(file: Path) -> Demo:
    """What an earlier start left, else a new password and nothing more."""
    try:
        return Demo(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return Demo(password=secrets.token_urlsafe(12))


def _new_hash(database: Database, password: str) -> str | None:
    """The hash to store; None when the account has this password. No transaction is open while it is computed."""
    with database.system() as session:
        account = identity.account(session, EMAIL)
    if account is not None and passwords.verify(password, account["password_hash"]).right:
        return None
    return passwords.hash_password(password)


def _account(session: SystemSession, password_hash: str | None) -> tuple[Row, str]:
    """The demo's organization, and the id of its user."""
    account = identity.account(session, EMAIL)
    if account is None:
        made = tenancy.register(session, email=EMAIL, password_hash=password_hash or "", organization=ORGANIZATION)
        plans.change_tenant(session, made.tenant["id"], plan="team")  # so that a load can be tried
        return made.tenant, made.user["id"]
    if password_hash is not None:
        identity.set_password_hash(session, account["id"], password_hash, instead_of=account["password_hash"])
    return tenancy.organizations(session, account)[0], account["id"]


def _fits(session: SystemSession, api_key: str, tenant_id: str) -> bool:
    try:
        return bool(api_key) and tenancy.caller_by_key(session, api_key).tenant_id == tenant_id
    except Unauthenticated:
        return False
    except Forbidden:  # the organization was suspended: the key is right, and it is not for us to resume
        return True


def _ensure_credential(session: TenantSession, vault: Vault, user_id: str) -> None:
    if CREDENTIAL not in credentials.names(session):
        token = {"bearer": secrets.token_urlsafe(24)}
        connections.create(session, vault, service="http", name=CREDENTIAL, data=token, user_id=user_id)


@dataclass(frozen=True, slots=True)
class _Saver:
    """Saves examples as workflows of one organization."""

    session: TenantSession
    workflows: Workflows
    registry: actions.Registry
    author: Author
    old_receiver: str
    receiver: str

    def ensure(self, example: str, workflow_id: str) -> str:
        """The id of the example's workflow: `workflow_id` if there is one, else a new one."""
        try:
            stored = self.workflows.definition(self.session, workflow_id)
        except NotFound:
            text = (EXAMPLES / f"{example}.yaml").read_text().replace(EXAMPLE_RECEIVER, self.receiver)
            row = self.workflows.create(self.session, parse(text, actions=self.registry), author=self.author)
            return str(row["id"])
        text = json.dumps(stored["definition"])
        if self.old_receiver != self.receiver and self.old_receiver in text:
            moved = load(json.loads(text.replace(self.old_receiver, self.receiver)))
            self.workflows.update(self.session, workflow_id, moved, author=self.author)
        return workflow_id
