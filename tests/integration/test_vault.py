"""Credentials open in their own row only, and both levels of keys rotate while they are being read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from engine.db import Database, TenantSession
from engine.errors import VaultError
from engine.repository import credentials
from engine.vault import MasterKeyRing, Vault

OLD, NEW = {"old": b"1" * 32}, {"new": b"2" * 32, "old": b"1" * 32}
STEP: dict[str, Any] = {"run_id": "run_1", "step_id": "s", "attempt": 1}


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    with database.system() as session:
        session.execute(sa.text("INSERT INTO tenants (id, name) VALUES ('a', 'A'), ('b', 'B')"))
    yield database
    database.close()


@pytest.fixture
def vault() -> Vault:
    return Vault(MasterKeyRing(OLD))


def _store(session: TenantSession, vault: Vault, name: str, secret: str) -> None:
    sealed = vault.seal(session, f"cred_{session.tenant_id}_{name}", {"api_key": secret})
    values = {"ciphertext": sealed.ciphertext, "key_version": sealed.key_version, "fingerprint": sealed.fingerprint}
    row = {"id": f"cred_{session.tenant_id}_{name}", "service_name": "http", "name": name, **values}
    assert credentials.insert_credential(session, row) is not None


def _open(database: Database, vault: Vault, tenant: str, name: str) -> str:
    with database.tenant(tenant) as session:
        (row,) = credentials.for_step(session, name=name, service=None, **STEP)
        secret: str = vault.open(session, row).get_secret_value()["api_key"]
    return secret


def test_what_was_sealed_opens_again_and_is_masked_when_printed(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.tenant("a") as session:
        (row,) = credentials.for_step(session, name="x", service=None, **STEP)
        secret = vault.open(session, row)
    assert secret.get_secret_value() == {"api_key": "hush-hush"}
    assert "hush" not in f"{secret!r} {secret}"


def test_nothing_in_the_database_holds_the_plaintext(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.system() as session:
        stored = session.rows(sa.text("SELECT ciphertext, fingerprint FROM credentials"))
        keys = session.rows(sa.text("SELECT wrapped FROM data_keys"))
    assert b"hush" not in bytes(stored[0]["ciphertext"])
    assert len(bytes(keys[0]["wrapped"])) == 12 + 32 + 16


def _swap(database: Database, first: str, second: str) -> None:
    with database.system() as session:
        session.execute(
            sa.text(
                "UPDATE credentials c SET ciphertext = o.ciphertext FROM credentials o"
                " WHERE (c.id, o.id) IN ((:a, :b), (:b, :a))"
            ),
            {"a": first, "b": second},
        )


@pytest.mark.parametrize("other", [("a", "y"), ("b", "x")], ids=["another row", "another tenant"])
def test_a_ciphertext_that_was_moved_does_not_open(database: Database, vault: Vault, other: tuple[str, str]) -> None:
    for tenant, name in (("a", "x"), other):
        with database.tenant(tenant) as session:
            _store(session, vault, name, "hush-hush")
    _swap(database, "cred_a_x", f"cred_{other[0]}_{other[1]}")
    for tenant, name in (("a", "x"), other):
        with pytest.raises(VaultError, match=f"'{name}' cannot be read: it was altered, moved"):
            _open(database, vault, tenant, name)


@pytest.mark.parametrize("byte", [0, 12, -1], ids=["nonce", "text", "tag"])
def test_a_flipped_bit_is_a_clear_error(database: Database, vault: Vault, byte: int) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.system() as session:
        data = bytearray(session.rows(sa.text("SELECT ciphertext FROM credentials"))[0]["ciphertext"])
        data[byte] ^= 1
        session.execute(sa.text("UPDATE credentials SET ciphertext = :c"), {"c": bytes(data)})
    with pytest.raises(VaultError, match="altered"):
        _open(database, vault, "a", "x")


def test_a_data_key_of_another_tenant_does_not_unwrap(database: Database, vault: Vault) -> None:
    for tenant in ("a", "b"):
        with database.tenant(tenant) as session:
            _store(session, vault, "x", "hush-hush")
    with database.system() as session:
        session.execute(
            sa.text(
                "UPDATE data_keys SET wrapped = (SELECT wrapped FROM data_keys WHERE tenant_id = 'b')"
                " WHERE tenant_id = 'a'"
            )
        )
    with pytest.raises(VaultError, match="cannot be read"):
        _open(database, Vault(MasterKeyRing(OLD)), "a", "x")


def test_a_master_key_that_is_missing_is_named(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with pytest.raises(VaultError, match="'old' is not in FAIRLANE_MASTER_KEYS"):
        _open(database, Vault(MasterKeyRing({"new": b"2" * 32})), "a", "x")


def test_after_rewrapping_the_old_master_key_is_not_needed(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.tenant("a") as session:
        assert Vault(MasterKeyRing(NEW)).rewrap(session) == 1
    assert _open(database, Vault(MasterKeyRing({"new": b"2" * 32})), "a", "x") == "hush-hush"


def test_rotation_gives_a_new_data_key_and_shreds_the_old(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.tenant("a") as session:
        assert vault.rotate(session) == 1
    with database.system() as session:
        assert session.execute(sa.text("SELECT version FROM data_keys")).scalars().all() == [2]
    assert _open(database, vault, "a", "x") == "hush-hush"


def test_credentials_stay_readable_while_keys_rotate(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        for n in range(5):
            _store(session, vault, f"x{n}", f"hush-{n}")
    stop, failures, reads = threading.Event(), [], [0]

    def read() -> None:
        while not stop.is_set():
            try:
                assert _open(database, vault, "a", f"x{reads[0] % 5}") == f"hush-{reads[0] % 5}"
                reads[0] += 1
            except Exception as error:
                failures.append(error)
                return

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        with database.tenant("a") as session:
            vault.rotate(session)
    stop.set()
    reader.join()
    assert failures == []
    assert reads[0] > 0


def test_two_first_credentials_at_the_same_moment_share_one_data_key(database: Database, vault: Vault) -> None:
    barrier = threading.Barrier(8)

    def seal(n: int) -> None:
        with database.tenant("a") as session:
            barrier.wait(10)
            _store(session, vault, f"x{n}", f"hush-{n}")

    threads = [threading.Thread(target=seal, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [_open(database, vault, "a", f"x{n}") for n in range(8)] == [f"hush-{n}" for n in range(8)]


def test_deleting_the_data_keys_shreds_the_secrets(database: Database, vault: Vault) -> None:
    with database.tenant("a") as session:
        _store(session, vault, "x", "hush-hush")
    with database.system() as session:
        session.execute(sa.text("DELETE FROM data_keys WHERE tenant_id = 'a'"))
    with pytest.raises(VaultError, match="its data key is gone"):
        _open(database, vault, "a", "x")
