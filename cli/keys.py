"""``fairlane keys``: the master keys, the data keys of the tenants under them, and changing both.

Rotation goes tenant by tenant, each in a transaction of its own, while runs go on: whoever reads a secret gets
ciphertext and key in one statement. What was done stays done when the command is interrupted; it may be run again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from cli.installation import Installation, opened, operator_here
from cli.options import DEFAULT_DATA, AsJson, Data, OfTenant, group
from cli.output import fail, show_items, show_json
from cli.progress import progress
from engine import audit, plans
from engine.db import Row, TenantSession
from engine.errors import VaultError
from engine.repository import credentials, operator
from engine.vault import MasterKeyRing, Vault, require_fitting

app = group("Keys: which secrets are under which key, and changing the keys.")

COLUMNS: dict[str, Any] = {
    "master key": lambda key: key["id"],
    "state": lambda key: key["state"],
    "data keys": lambda key: key["data_keys"],
    "organizations": lambda key: key["tenants"],
}


@dataclass(slots=True)
class Rotation:
    """What a rotation did. `faults` has tenant and detail for each tenant of which something is left."""

    master_key: str
    tenants_with_new_data_key: int = 0
    secrets_encrypted_anew: int = 0
    data_keys_wrapped_anew: int = 0
    unneeded_master_keys: list[str] = field(default_factory=list)
    faults: list[dict[str, str]] = field(default_factory=list)

    def encrypt_anew(self, vault: Vault, session: TenantSession) -> None:
        """Secrets that cannot be read stay under their old key."""
        secrets = vault.rotate(session)
        audit.record(session, operator_here(), "keys.rotated", session.tenant_id, secrets=secrets)
        self.secrets_encrypted_anew += secrets
        self.tenants_with_new_data_key += 1
        if len(credentials.wrapped_keys(session)) > 1:
            self.fault(session.tenant_id, "some of its secrets cannot be read; they stay as they are.")

    def wrap_anew(self, vault: Vault, session: TenantSession) -> None:
        """Raises VaultError when a data key is under a master key that is not configured."""
        self.data_keys_wrapped_anew += vault.rewrap(session)

    def fault(self, tenant_id: str, detail: str) -> None:
        self.faults.append({"tenant": tenant_id, "detail": detail})


@app.command()
def rotate(
    master: Annotated[bool, typer.Option("--master", help="Only wrap data keys under the first master key.")] = False,
    data_keys: Annotated[bool, typer.Option("--data-keys", help="Only make new data keys.")] = False,
    tenant: OfTenant = None,
    data: Data = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Give each organization a new data key, encrypt its secrets anew, and leave no key under an old master key.

    The first of FAIRLANE_MASTER_KEYS is the one that counts. Runs go on meanwhile.
    """
    with opened(data) as here:
        if tenant is not None:
            with here.database.system() as session:
                plans.of_tenant(session, tenant)
        done = _rotated(here, tenant, master=master or not data_keys, data_keys=data_keys or not master)
    if as_json:
        show_json(done)
    else:
        _tell(done)
    for fault in done.faults:
        fail(f"{fault['tenant']}: {fault['detail']}")
    if done.faults:
        raise typer.Exit(1)


@app.command()
def status(data: Data = DEFAULT_DATA, as_json: AsJson = False) -> None:
    """Show how many data keys are under which master key; exit 1 when one of those is not configured or another one."""
    with opened(data) as here:
        keys = _status(here)
        show_items(keys, COLUMNS, as_json=as_json)
        with here.database.system() as session:
            require_fitting(session, here.settings.master_key_ring)
    missing = [key["id"] for key in keys if key["state"] == "missing"]
    if missing:
        fail(f"Secrets are under {', '.join(missing)}, which FAIRLANE_MASTER_KEYS lacks: add it, after the first.")
        raise typer.Exit(1)


def _rotated(here: Installation, tenant: str | None, *, master: bool, data_keys: bool) -> Rotation:
    ring = MasterKeyRing(here.settings.master_key_ring)
    vault, done = Vault(ring), Rotation(ring.current)
    if data_keys:
        _each(here, _tenants(here, tenant), "Encrypting secrets anew", done, lambda s: done.encrypt_anew(vault, s))
    if master:
        under_others = _tenants(here, tenant, not_under=ring.current)
        _each(here, under_others, "Wrapping data keys anew", done, lambda s: done.wrap_anew(vault, s))
    done.unneeded_master_keys = [key["id"] for key in _status(here) if key["state"] == "unneeded"]
    return done


def _tenants(here: Installation, tenant: str | None, *, not_under: str | None = None) -> Sequence[str]:
    with here.database.system() as session:
        return operator.tenants_with_keys(session, not_under=not_under, tenant_id=tenant)


def _each(
    here: Installation, tenants: Sequence[str], doing: str, done: Rotation, work: Callable[[TenantSession], None]
) -> None:
    with progress(doing, total=len(tenants)) as advance:
        for tenant_id in tenants:
            try:
                with here.database.tenant(tenant_id) as session:
                    work(session)
            except VaultError as error:
                done.fault(tenant_id, error.detail)
            advance()


def _status(here: Installation) -> list[Row]:
    """Every master key, configured or in use, in the order of FAIRLANE_MASTER_KEYS."""
    with here.database.system() as session:
        used = {row["id"]: row for row in operator.master_keys(session)}
    ring = list(here.settings.master_key_ring)
    rows = [used.get(key_id, {"id": key_id, "data_keys": 0, "tenants": 0}) for key_id in (*ring, *(used.keys() - ring))]
    return [{"id": row["id"], "state": _state(row, ring)} | row for row in rows]


def _state(row: Row, ring: list[str]) -> str:
    if row["id"] == ring[0]:
        return "current"
    if row["id"] not in ring:
        return "missing"
    return "old" if row["data_keys"] else "unneeded"


def _tell(done: Rotation) -> None:
    typer.echo(
        f"New data keys: {done.tenants_with_new_data_key:,}, with {done.secrets_encrypted_anew:,} secrets encrypted "
        f"anew. Older data keys wrapped under {done.master_key}: {done.data_keys_wrapped_anew:,}."
    )
    if done.unneeded_master_keys:
        typer.echo(f"FAIRLANE_MASTER_KEYS no longer needs: {', '.join(done.unneeded_master_keys)}.")
