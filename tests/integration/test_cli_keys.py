"""``fairlane keys`` by its entry point: both levels of keys rotate while secrets are being read."""

from __future__ import annotations

import base64
import os
import pty
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from embedded.ports import free_port
from engine.db import Database
from engine.errors import VaultError
from engine.repository import credentials
from engine.vault import MasterKeyRing, Vault
from tests.command_line import CommandLine, Result, configured

OLD, NEW = ("old", b"1" * 32), ("new", b"2" * 32)
TENANTS = ("a", "b", "c")


@dataclass
class World:
    """Three organizations, each with two secrets, sealed under the master key ``old``; the ring begins with ``new``."""

    fairlane: CommandLine
    database: Database

    def rotate(self, *words: str) -> Result:
        return self.fairlane.fine("keys", "rotate", *words)

    def data_keys(self) -> set[tuple[str, int, str]]:
        """Tenant, version and master key of every data key."""
        with self.database.system() as session:
            rows = session.rows(sa.text("SELECT tenant_id, version, master_key_id FROM data_keys"))
        return {(row["tenant_id"], row["version"], row["master_key_id"]) for row in rows}

    def secret(self, vault: Vault, tenant: str, name: str) -> str:
        with self.database.tenant(tenant) as session:
            (row,) = [row for row in credentials.all_with_keys(session) if row["name"] == name]
            secret: str = vault.open(session, row).get_secret_value()["api_key"]
        return secret

    def all_open(self, *ring: tuple[str, bytes]) -> bool:
        vault = Vault(MasterKeyRing(dict(ring)))
        return all(self.secret(vault, tenant, name) == f"{tenant} {name}" for tenant in TENANTS for name in "xy")


def _variable(*ring: tuple[str, bytes]) -> str:
    return ",".join(f"{key_id}:{base64.b64encode(key).decode()}" for key_id, key in ring)


@pytest.fixture
def world(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[World]:
    database, vault = Database(database_url), Vault(MasterKeyRing(dict([OLD])))
    for tenant in TENANTS:
        with database.system() as session:
            session.execute(sa.text("INSERT INTO tenants (id, name) VALUES (:id, :id)"), {"id": tenant})
        with database.tenant(tenant) as session:
            for name in "xy":
                sealed = vault.seal(session, f"cred_{tenant}_{name}", {"api_key": f"{tenant} {name}"})
                values = {"ciphertext": sealed.ciphertext, "key_version": 1, "fingerprint": sealed.fingerprint}
                credentials.insert_credential(
                    session, {"id": f"cred_{tenant}_{name}", "service_name": "http", "name": name, **values}
                )
    fairlane = configured(tmp_path, database_url, redis_url)
    fairlane.variables["FAIRLANE_MASTER_KEYS"] = _variable(NEW, OLD)
    yield World(fairlane, database)
    database.close()


def test_without_a_choice_both_levels_rotate_and_the_old_master_key_is_needed_no_more(world: World) -> None:
    result = world.rotate()
    assert result.out == (
        "New data keys: 3, with 6 secrets encrypted anew. Older data keys wrapped under new: 0.\n"
        "FAIRLANE_MASTER_KEYS no longer needs: old.\n"
    )
    assert world.data_keys() == {(tenant, 2, "new") for tenant in TENANTS}
    assert world.all_open(NEW)


def test_the_master_level_alone_leaves_the_secrets_as_they_are(world: World) -> None:
    assert world.rotate("--master", "--json").json == {
        "master_key": "new",
        "tenants_with_new_data_key": 0,
        "secrets_encrypted_anew": 0,
        "data_keys_wrapped_anew": 3,
        "unneeded_master_keys": ["old"],
        "faults": [],
    }
    assert world.data_keys() == {(tenant, 1, "new") for tenant in TENANTS}
    assert world.all_open(NEW)
    assert world.rotate("--master", "--json").json["data_keys_wrapped_anew"] == 0


def test_one_organization_can_have_new_data_keys_alone(world: World) -> None:
    done = world.rotate("--data-keys", "--tenant", "b", "--json").json
    assert (done["tenants_with_new_data_key"], done["secrets_encrypted_anew"]) == (1, 2)
    assert done["unneeded_master_keys"] == []
    assert world.data_keys() == {("a", 1, "old"), ("b", 2, "new"), ("c", 1, "old")}
    assert world.all_open(NEW, OLD)
    assert world.fairlane("keys", "rotate", "--tenant", "nobody").code == 1


def test_the_status_tells_how_many_keys_are_under_which_master_key(world: World) -> None:
    world.rotate("--tenant", "a")
    world.fairlane.variables["FAIRLANE_MASTER_KEYS"] = _variable(NEW, OLD, ("spare", b"3" * 32))
    assert world.fairlane.fine("keys", "status", "--json").json == [
        {"id": "new", "state": "current", "data_keys": 1, "tenants": 1},
        {"id": "old", "state": "old", "data_keys": 2, "tenants": 2},
        {"id": "spare", "state": "unneeded", "data_keys": 0, "tenants": 0},
    ]
    missing = world.fairlane("keys", "status", FAIRLANE_MASTER_KEYS=_variable(NEW))
    assert missing.code == 1
    assert "Secrets are under old, which FAIRLANE_MASTER_KEYS lacks" in missing.err
    assert "missing" in missing.out
    doctor = world.fairlane("doctor", FAIRLANE_MASTER_KEYS=_variable(NEW))
    assert doctor.code == 1
    assert "Secrets are under old, which FAIRLANE_MASTER_KEYS lacks" in doctor.err


def test_a_master_key_that_is_missing_is_named_for_each_organization_and_the_others_are_done(world: World) -> None:
    world.rotate("--master", "--tenant", "a")
    for words in ((), ("--master",)):
        result = world.fairlane("keys", "rotate", *words, FAIRLANE_MASTER_KEYS=_variable(NEW))
        assert result.code == 1
        assert {line.partition(":")[0] for line in result.err.splitlines()} == {"b", "c"}
        assert "'old' is not in FAIRLANE_MASTER_KEYS" in result.err
    assert ("a", 2, "new") in world.data_keys()
    assert world.all_open(NEW, OLD)
    world.rotate()
    assert world.all_open(NEW)


def test_a_secret_that_cannot_be_read_is_reported_and_stays_as_it_is(world: World) -> None:
    with world.database.system() as session:
        session.execute(sa.text("UPDATE credentials SET ciphertext = 'moved' WHERE id = 'cred_b_x'"))
    result = world.fairlane("keys", "rotate")
    assert (result.code, result.err) == (1, "b: some of its secrets cannot be read; they stay as they are.\n")
    assert world.data_keys() == {("a", 2, "new"), ("b", 1, "new"), ("b", 2, "new"), ("c", 2, "new")}
    assert world.secret(Vault(MasterKeyRing(dict([NEW]))), "b", "y") == "b y"


def test_nobody_fails_to_read_a_secret_while_keys_rotate(world: World) -> None:
    vault, stop = Vault(MasterKeyRing(dict([OLD, NEW]))), threading.Event()
    reads, faults = dict.fromkeys(TENANTS, 0), list[str]()
    begun = threading.Barrier(len(TENANTS) + 1)

    def read(tenant: str) -> None:
        begun.wait()
        while not stop.is_set():
            try:
                assert world.secret(vault, tenant, "x") == f"{tenant} x"
            except VaultError as error:
                faults.append(error.detail)
            reads[tenant] += 1

    readers = [threading.Thread(target=read, args=(tenant,)) for tenant in TENANTS]
    for reader in readers:
        reader.start()
    begun.wait()
    before = dict(reads)
    for _ in range(5):
        for words in ((), ("--master",), ("--data-keys",)):
            world.rotate(*words)
        swapped = world.fairlane.variables["FAIRLANE_MASTER_KEYS"].split(",")
        world.fairlane.variables["FAIRLANE_MASTER_KEYS"] = ",".join(reversed(swapped))
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []
    assert all(reads[tenant] > before[tenant] + 10 for tenant in TENANTS)
    assert {version for _, version, _ in world.data_keys()} == {11}


def test_a_rotation_that_takes_long_shows_on_a_terminal_how_far_it_is(world: World) -> None:
    leader, follower = pty.openpty()
    with world.database.tenant("b") as session:  # the rotation stops at b until this transaction ends
        credentials.lock_keys(session, exclusive=False)
        process = world.fairlane.start("keys", "rotate", stderr=follower)
        os.close(follower)
        seen = ""
        while "Encrypting secrets anew" not in seen or "1/3" not in seen:
            seen += os.read(leader, 1000).decode(errors="replace")
    out, _ = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 0
    assert out.startswith("New data keys: 3,")


@pytest.mark.parametrize("words", [("doctor",), ("keys", "status"), ("up", "--port", "0")])
def test_another_master_key_of_the_same_id_is_told_before_anything_fails(world: World, words: tuple[str, ...]) -> None:
    words = tuple(str(free_port()) if word == "0" else word for word in words)
    result = world.fairlane(*words, FAIRLANE_MASTER_KEYS=_variable(NEW, ("old", b"9" * 32)))
    assert result.code == 1
    assert "the master key old is not the one that these data keys were made with" in result.err
    assert len(result.err.splitlines()) == 1
