"""Registering, logging in, tokens, keys and organizations, over the real API."""

from __future__ import annotations

import base64
import json
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import bcrypt
import jwt
import pytest
import sqlalchemy as sa

from api.throttle import PER_ACCOUNT_AND_ADDRESS
from engine import models
from engine.repository import api_keys, identity
from tests.api_server import PASSWORD, Api, running_api, services_for, settings_for


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def forged(api: Api, **claims: Any) -> str:
    """A token with our key and these claims; a claim of None is left out."""
    every = {"exp": datetime.now(UTC) + timedelta(hours=1), **claims}
    present = {name: value for name, value in every.items() if value is not None}
    return jwt.encode(present, api.services.settings.secret_key.get_secret_value(), algorithm="HS256")


def legacy_user(api: Api, email: str, password: str, *, user_id: str) -> str:
    """An account as the multi-user system left it: bcrypt of Go, a personal organization. Its hash."""
    stored = bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4, prefix=b"2a")).decode()
    with api.services.database.system() as session:
        identity.insert_tenant(session, tenant_id=f"tenant_{user_id}", name=f"{email}'s Organization")
        identity.insert_user(session, user_id=user_id, email=email, password_hash=stored)
        identity.insert_member(session, tenant_id=f"tenant_{user_id}", user_id=user_id, role="owner")
        identity.set_home(session, user_id, f"tenant_{user_id}")
    return stored


def stored_hash(api: Api, user_id: str) -> str:
    with api.services.database.system() as session:
        row = session.row(sa.select(models.users.c.password_hash).where(models.users.c.id == user_id))
    assert row is not None
    return str(row["password_hash"])


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("register", {"email": "bo@example.com", "password": "short"}, "/password: must have at least 8 characters"),
        ("register", {"email": "bo@example.com", "password": "x" * 2000}, "/password: must have at most "),
        ("register", {"email": "bo@example.com"}, "/password: this field is required"),
        ("login", {"email": "bo@example.com", "password": "x", "mail": 1}, "/mail: this field is not known here"),
    ],
)
def test_a_bad_field_is_told_in_words_for_people(api: Api, path: str, body: dict[str, Any], said: str) -> None:
    answer = api.client().post(f"/api/auth/{path}", json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(said)


def test_registering_makes_an_account_with_an_organization_of_its_own(api: Api) -> None:
    answer = api.client().post("/api/auth/register", json={"email": "Ann@example.com", "password": PASSWORD})

    assert answer.status_code == 201
    made = answer.json()
    assert made["user"]["email"] == "Ann@example.com"
    assert made["tenant"]["name"] == "Ann@example.com's Organization"
    assert made["tenant"]["role"] == "owner"
    assert made["user"]["id"].startswith("user_")
    assert made["tenant"]["id"].startswith("tenant_")
    claims = jwt.decode(made["token"], options={"verify_signature": False})
    assert (claims["user_id"], claims["tenant_id"]) == (made["user"]["id"], made["tenant"]["id"])
    assert timedelta(days=7) - timedelta(minutes=1) < datetime.fromtimestamp(claims["exp"], UTC) - datetime.now(UTC)
    me = api.client(made["token"]).get("/api/me").json()
    assert me["user"] == made["user"]
    assert me["tenant"] == made["tenant"]
    assert me["tenants"] == [made["tenant"]]
    assert me["role"] == "owner"


def test_the_organization_is_called_what_its_founder_says(api: Api) -> None:
    body = {"email": "founder@example.com", "password": PASSWORD, "organization": "  Acme "}
    token = api.client().post("/api/auth/register", json=body).json()["token"]
    assert api.client(token).get("/api/me").json()["tenant"]["name"] == "Acme"


def test_an_email_is_taken_in_whatever_case_it_is_written(api: Api) -> None:
    api.person("bob@example.com")
    answer = api.client().post("/api/auth/register", json={"email": "BOB@Example.com", "password": PASSWORD})
    assert answer.status_code == 409
    assert answer.json()["code"] == "email_taken"
    assert "log in" in answer.json()["detail"]


def test_of_many_who_register_one_email_at_once_one_gets_it(api: Api) -> None:
    def register(number: int) -> int:
        email = "".join(c.upper() if number >> i & 1 else c for i, c in enumerate("racer@example.com"))
        return api.client().post("/api/auth/register", json={"email": email, "password": PASSWORD}).status_code

    with ThreadPoolExecutor(6) as pool:
        codes = sorted(pool.map(register, range(6)))
    assert codes == [201, 409, 409, 409, 409, 409]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"email": "nobody", "password": PASSWORD}, "/email"),
        ({"email": "c@example.com", "password": "short"}, "/password"),
        ({"email": "c@example.com", "password": "x" * 1025}, "/password"),
        ({"email": "c@example.com", "password": PASSWORD, "role": "admin"}, "/role"),
        ({"email": "c@example.com"}, "/password"),
        ({"email": "c@example.com", "password": PASSWORD, "organization": "a\u0000b"}, "/organization"),
        ({"email": "c\u0000@example.com", "password": PASSWORD}, "/email"),
    ],
)
def test_a_faulty_registration_is_refused_with_the_place(api: Api, body: dict[str, str], pointer: str) -> None:
    answer = api.client().post("/api/auth/register", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["code"] == "invalid_input"
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert PASSWORD not in answer.text
    assert "short" not in answer.text.replace("shorter", "")


@pytest.mark.parametrize("email", ["o'neil+work@example.com", "ünïcode@exämple.com", "x@localhost", "me@acme.test"])
def test_unusual_emails_are_emails(api: Api, email: str) -> None:
    made = api.client().post("/api/auth/register", json={"email": email, "password": PASSWORD})
    answer = api.client().post("/api/auth/login", json={"email": email, "password": PASSWORD})
    assert answer.json()["user"] == made.json()["user"]


def test_logging_in_gives_a_token_and_every_organization(api: Api) -> None:
    person = api.person()
    other = person.http.post("/api/tenants", json={"name": "Second"}).json()

    answer = api.client().post("/api/auth/login", json={"email": person.email.upper(), "password": PASSWORD})

    assert answer.status_code == 200
    login = answer.json()
    assert [tenant["id"] for tenant in login["tenants"]] == [person.tenant_id, other["id"]]
    assert login["user"] == {"id": person.user_id, "email": person.email}
    assert api.client(login["token"]).get("/api/me").json()["tenant"]["id"] == person.tenant_id
    assert "hash" not in answer.text


def test_a_wrong_password_and_an_unknown_email_are_told_the_same(api: Api) -> None:
    person = api.person()
    wrong = api.client().post("/api/auth/login", json={"email": person.email, "password": "not the password"})
    unknown = api.client().post("/api/auth/login", json={"email": "nobody@example.com", "password": PASSWORD})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.json()["code"] == unknown.json()["code"] == "bad_credentials"
    assert wrong.json()["detail"] == unknown.json()["detail"]
    assert set(wrong.json()) == set(unknown.json())


def test_an_unknown_email_takes_as_long_as_a_wrong_password(api: Api) -> None:
    people = [api.person() for _ in range(3)]

    def seconds(email: str) -> float:
        began = time.perf_counter()
        api.client().post("/api/auth/login", json={"email": email, "password": "not the password"})
        return time.perf_counter() - began

    known = statistics.median(seconds(person.email) for person in people)
    unknown = statistics.median(seconds(f"no-{person.email}") for person in people)
    assert unknown > known / 3  # without the work it is a fiftieth


def test_a_legacy_bcrypt_hash_opens_and_becomes_argon2id(api: Api) -> None:
    legacy_user(api, "old@example.com", "hunter2", user_id="6b1f")
    login = api.client().post("/api/auth/login", json={"email": "old@example.com", "password": "hunter2"})
    assert login.status_code == 200
    assert stored_hash(api, "6b1f").startswith("$argon2id$")
    again = api.client().post("/api/auth/login", json={"email": "old@example.com", "password": "hunter2"})
    assert again.status_code == 200
    assert again.json()["tenants"] == [{"id": "tenant_6b1f", "name": "old@example.com's Organization", "role": "owner"}]


def test_a_wrong_password_leaves_the_legacy_hash_alone(api: Api) -> None:
    stored = legacy_user(api, "old2@example.com", "hunter2", user_id="6b2f")
    assert api.client().post("/api/auth/login", json={"email": "old2@example.com", "password": "x"}).status_code == 401
    assert stored_hash(api, "6b2f") == stored


def test_a_legacy_password_longer_than_bcrypt_looks_still_opens(api: Api) -> None:
    password = "långt " * 20
    legacy_user(api, "long@example.com", password, user_id="6b3f")
    login = api.client().post("/api/auth/login", json={"email": "long@example.com", "password": password})
    assert login.status_code == 200
    assert stored_hash(api, "6b3f").startswith("$argon2id$")


def test_a_hash_that_nobody_can_read_never_opens(api: Api) -> None:
    legacy_user(api, "broken@example.com", "hunter2", user_id="6b4f")
    with api.services.database.system() as session:
        session.execute(sa.update(models.users).where(models.users.c.id == "6b4f").values(password_hash="plaintext?"))
    answer = api.client().post("/api/auth/login", json={"email": "broken@example.com", "password": "plaintext?"})
    assert answer.status_code == 401


def test_two_old_accounts_whose_emails_differ_by_case_both_log_in(api: Api) -> None:
    legacy_user(api, "Twin@example.com", "password one", user_id="t1")
    legacy_user(api, "twin@example.com", "password two", user_id="t2")
    first = api.client().post("/api/auth/login", json={"email": "Twin@example.com", "password": "password one"})
    second = api.client().post("/api/auth/login", json={"email": "twin@example.com", "password": "password two"})
    assert (first.json()["user"]["id"], second.json()["user"]["id"]) == ("t1", "t2")


@pytest.mark.parametrize(("stored", "typed"), [(" Eve@example.com", " eve@example.com"), ("e" * 490, " " + "E" * 490)])
def test_an_old_email_with_blanks_around_it_or_of_any_length_logs_in(api: Api, stored: str, typed: str) -> None:
    legacy_user(api, stored, "password one", user_id=f"old{len(stored)}")
    answer = api.client().post("/api/auth/login", json={"email": typed, "password": "password one"})
    assert (answer.status_code, answer.json()["user"]["id"]) == (200, f"old{len(stored)}")


def test_guessing_a_password_is_slowed_down_and_others_are_not(api: Api) -> None:
    victim, other = api.person(), api.person()

    def guess(number: int) -> int:
        body = {"email": victim.email, "password": f"guess {number}"}
        return api.client().post("/api/auth/login", json=body).status_code

    with ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(guess, range(PER_ACCOUNT_AND_ADDRESS + 6)))
    assert codes.count(401) == PER_ACCOUNT_AND_ADDRESS
    assert codes.count(429) == 6
    refused = api.client().post("/api/auth/login", json={"email": victim.email.upper(), "password": PASSWORD})
    assert refused.status_code == 429
    assert refused.json()["code"] == "too_many_attempts"
    assert 0 < int(refused.headers["retry-after"]) <= 300
    assert api.client().post("/api/auth/login", json={"email": other.email, "password": PASSWORD}).status_code == 200


@pytest.mark.parametrize("tenant", [None, "", 7, ["tenant_x"], {"id": "x"}, True])
def test_a_token_without_a_proper_tenant_is_refused_in_these_words(api: Api, tenant: Any) -> None:
    person = api.person()
    answer = api.client(forged(api, user_id=person.user_id, tenant_id=tenant)).get("/api/me")
    assert answer.status_code == 401
    assert answer.json()["detail"] == "Invalid tenant_id in token"


def test_forged_tokens_are_refused(api: Api) -> None:
    person = api.person()
    claims = {"user_id": person.user_id, "tenant_id": person.tenant_id}
    later = datetime.now(UTC) + timedelta(hours=1)
    key = api.services.settings.secret_key.get_secret_value()

    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    header, payload, signature = person.token.split(".")
    wrong = {
        "expired": forged(api, **claims, exp=datetime.now(UTC) - timedelta(seconds=5)),
        "never expires": forged(api, **claims, exp=None),
        "no user": forged(api, tenant_id=person.tenant_id),
        "user that is gone": forged(api, user_id="user_gone", tenant_id=person.tenant_id),
        "another key": jwt.encode({**claims, "exp": later}, "x" * 40, algorithm="HS256"),
        "another algorithm": jwt.encode({**claims, "exp": later}, key, algorithm="HS512"),
        "none": f"{part({'alg': 'none', 'typ': 'JWT'})}.{payload}.",
        "none with signature": f"{part({'alg': 'None', 'typ': 'JWT'})}.{payload}.{signature}",
        "changed": f"{header}.{part({**claims, 'tenant_id': 'tenant_x', 'exp': 4e9})}.{signature}",
        "no token": "abc",
        "critical header": f"{part({'alg': 'HS256', 'crit': ['x'], 'x': 1})}.{payload}.{signature}",
    }
    for name, token in wrong.items():
        answer = api.client(token).get("/api/me")
        assert answer.status_code == 401, name
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["title"], name
    assert api.client().get("/api/me", headers={"Authorization": "Basic YTpi"}).status_code == 401
    assert api.client().get("/api/me").json()["code"] == "unauthenticated"


def test_one_user_reaches_both_organizations_by_switching_and_by_header(api: Api) -> None:
    person = api.person()
    second = person.http.post("/api/tenants", json={"name": "Second"})
    assert second.status_code == 201
    assert second.json()["role"] == "owner"
    there = second.json()["id"]

    by_header = person.http.get("/api/me", headers={"X-Tenant-ID": there}).json()
    switched = person.http.post("/api/auth/switch", json={"tenant_id": there}).json()
    by_token = api.client(switched["token"]).get("/api/me").json()

    assert by_header == by_token
    assert by_token["tenant"] == switched["tenant"] == {"id": there, "name": "Second", "role": "owner"}
    assert person.http.get("/api/me").json()["tenant"]["id"] == person.tenant_id


def test_a_foreign_organization_is_refused_by_header_token_and_switch(api: Api) -> None:
    person, stranger = api.person(), api.person()
    for answer in (
        person.http.get("/api/me", headers={"X-Tenant-ID": stranger.tenant_id}),
        person.http.get("/api/credentials", headers={"X-Tenant-ID": "tenant_that_is_not"}),
        api.client(forged(api, user_id=person.user_id, tenant_id=stranger.tenant_id)).get("/api/me"),
        person.http.post("/api/auth/switch", json={"tenant_id": stranger.tenant_id}),
    ):
        assert answer.status_code == 403
        assert answer.json()["code"] == "not_a_member"


def test_a_member_who_was_removed_is_out_at_once(api: Api) -> None:
    owner = api.person()
    member = api.member(owner.tenant_id, "member")
    member_id = member.get("/api/me").json()["user"]["id"]
    with api.services.database.tenant(owner.tenant_id) as session:
        session.execute(sa.delete(models.memberships).where(models.memberships.c.user_id == member_id))
    assert member.get("/api/me").json()["code"] == "not_a_member"


def test_a_suspended_organization_says_so(api: Api) -> None:
    owner = api.person(organization="Late Payers")
    with api.services.database.system() as session:
        ours = models.tenants.c.id == owner.tenant_id
        session.execute(sa.update(models.tenants).where(ours).values(status="suspended"))
    answer = owner.http.get("/api/me")
    assert answer.status_code == 403
    assert answer.json()["code"] == "tenant_suspended"
    assert "Late Payers" in answer.json()["detail"]


def test_organizations_are_listed_shown_and_renamed_by_their_owners(api: Api) -> None:
    owner, stranger = api.person(), api.person()
    viewer = api.member(owner.tenant_id, "admin")
    more = [owner.http.post("/api/tenants", json={"name": f"Org {n}"}).json()["id"] for n in range(3)]

    first = owner.http.get("/api/tenants", params={"limit": 3}).json()
    rest = owner.http.get("/api/tenants", params={"limit": 3, "cursor": first["next_cursor"]}).json()
    assert [t["id"] for t in [*first["items"], *rest["items"]]] == [owner.tenant_id, *more]
    assert rest["next_cursor"] is None

    renamed = owner.http.patch(f"/api/tenants/{more[0]}", json={"name": "Renamed"})
    assert renamed.json()["name"] == "Renamed"
    assert owner.http.get(f"/api/tenants/{more[0]}").json() == renamed.json()
    assert viewer.patch(f"/api/tenants/{owner.tenant_id}", json={"name": "Mine"}).json()["code"] == "forbidden"
    assert stranger.http.get(f"/api/tenants/{more[0]}").status_code == 404
    assert stranger.http.patch(f"/api/tenants/{more[0]}", json={"name": "Mine"}).status_code == 404


def test_an_api_key_acts_in_its_organization_and_as_nobody(api: Api) -> None:
    owner, stranger = api.person(), api.person()
    key = api.key(owner.tenant_id, "runs:read")

    me = key.get("/api/me").json()
    assert me["tenant"]["id"] == owner.tenant_id
    assert me["user"] is None
    assert me["key"]["scopes"] == ["runs:read"]
    assert [t["id"] for t in key.get("/api/tenants").json()["items"]] == [owner.tenant_id]
    assert key.get(f"/api/tenants/{stranger.tenant_id}").status_code == 404
    assert key.get("/api/me", headers={"X-Tenant-ID": owner.tenant_id}).status_code == 200
    assert key.get("/api/me", headers={"X-Tenant-ID": stranger.tenant_id}).json()["code"] == "not_a_member"
    assert key.post("/api/tenants", json={"name": "x"}).json()["code"] == "needs_person"
    assert key.post("/api/auth/switch", json={"tenant_id": owner.tenant_id}).json()["code"] == "needs_person"


def test_a_key_that_is_unknown_expired_or_revoked_opens_nothing(api: Api) -> None:
    owner = api.person()
    expired = api.key(owner.tenant_id, "admin", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked = api.key(owner.tenant_id, "admin")
    key_id = revoked.get("/api/me").json()["key"]["id"]
    with api.services.database.tenant(owner.tenant_id) as session:
        assert api_keys.revoke(session, key_id)
    for client in (expired, revoked, api.client("fl_" + "0" * 64), api.client("fl_")):
        answer = client.get("/api/me")
        assert answer.status_code == 401
        assert answer.json()["code"] == "invalid_token"


def test_the_secret_of_a_key_is_nowhere_and_its_use_is_noted_once_a_minute(api: Api) -> None:
    owner = api.person()
    key = api.key(owner.tenant_id, "runs:read")
    secret = key.headers["authorization"].removeprefix("Bearer ")

    def row() -> dict[str, Any]:
        with api.services.database.tenant(owner.tenant_id) as session:
            found = session.row(sa.select(models.api_keys))
        assert found is not None
        return found

    assert row()["last_used_at"] is None
    key.get("/api/me")
    used = row()["last_used_at"]
    key.get("/api/me")
    assert row()["last_used_at"] == used is not None
    with api.services.database.tenant(owner.tenant_id) as session:
        session.execute(sa.update(models.api_keys).values(last_used_at=used - timedelta(minutes=2)))
    key.get("/api/me")
    assert row()["last_used_at"] >= used
    assert secret.startswith(row()["prefix"])
    assert len(row()["prefix"]) < len(secret) / 3
    assert secret not in str(row())
