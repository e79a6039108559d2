"""People work together: members, roles, invitations, keys, and the five cases of the move to organizations."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from engine import models
from engine.plans import Plans
from tests.api_server import PASSWORD, Api, Person, running_api, services_for, settings_for
from tests.mail_server import Mailbox, mail_server


@pytest.fixture(scope="module")
def api(module_database_url: str, redis_server: Any) -> Iterator[Api]:
    with running_api(services_for(settings_for(module_database_url, redis_server.url))) as running:
        yield running


def invite(by: httpx.Client, tenant_id: str, email: str, role: str = "member") -> dict[str, Any]:
    answer = by.post(f"/api/tenants/{tenant_id}/invite", json={"email": email, "role": role})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def accept(by: httpx.Client, token: str) -> httpx.Response:
    return by.post("/api/invites/accept", json={"token": token})


def joined(api: Api, owner: Person, role: str = "member") -> Person:
    """Somebody who was invited and came."""
    person = api.person()
    assert accept(person.http, invite(owner.http, owner.tenant_id, person.email, role)["token"]).status_code == 200
    return person


def members(by: httpx.Client, tenant_id: str) -> dict[str, str]:
    items = by.get(f"/api/tenants/{tenant_id}/members").json()["items"]
    return {item["user_id"]: item["role"] for item in items}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def test_the_five_cases_of_the_move_to_organizations(api: Api) -> None:
    """Two organizations; users in each; workflows in each; isolation; one user in both, by token and by header."""
    ann, bob = api.person(organization="Acme"), api.person(organization="Zen")
    amy, ben = joined(api, ann), joined(api, bob)
    in_acme = {"X-Tenant-ID": ann.tenant_id}
    theirs, ours = bob.workflow(name="Zen's"), ann.workflow(name="Acme's")

    assert [w["id"] for w in amy.http.get("/api/workflows", headers=in_acme).json()["items"]] == [ours]
    assert [w["id"] for w in bob.http.get("/api/workflows").json()["items"]] == [theirs]
    for path in (f"/api/workflows/{theirs}", f"/api/tenants/{bob.tenant_id}/members"):
        assert refusal(amy.http.get(path, headers=in_acme)) == (404, "not_found")
    assert refusal(ben.http.get("/api/workflows", headers=in_acme)) == (403, "not_a_member")

    assert accept(amy.http, invite(bob.http, bob.tenant_id, amy.email, "viewer")["token"]).json()["role"] == "viewer"
    by_header = amy.http.get("/api/workflows", headers={"X-Tenant-ID": bob.tenant_id})
    switched = amy.http.post("/api/auth/switch", json={"tenant_id": bob.tenant_id}).json()
    by_token = api.client(switched["token"]).get("/api/workflows")
    assert [w["id"] for w in by_header.json()["items"]] == [w["id"] for w in by_token.json()["items"]] == [theirs]
    assert refusal(api.client(switched["token"]).delete(f"/api/workflows/{theirs}")) == (403, "forbidden")
    assert {t["id"]: t["role"] for t in amy.http.get("/api/me").json()["tenants"]} == {
        amy.tenant_id: "owner",
        ann.tenant_id: "member",
        bob.tenant_id: "viewer",
    }


def test_an_invitation_makes_a_member_once(api: Api) -> None:
    owner, guest = api.person(organization="Acme"), api.person("Guest.Person@example.com")
    made = invite(owner.http, owner.tenant_id, "guest.PERSON@example.com", "admin")
    assert made["invite"]["email"] == "guest.PERSON@example.com"
    lasts = datetime.fromisoformat(made["invite"]["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < lasts <= timedelta(days=7)
    assert made["link"].endswith(f"#{made['token']}")
    assert made["mailed"] is False

    answer = accept(guest.http, made["token"])
    assert answer.json() == {"tenant": {"id": owner.tenant_id, "name": "Acme", "role": "admin"}, "role": "admin"}
    assert members(guest.http, owner.tenant_id) == {owner.user_id: "owner", guest.user_id: "admin"}
    assert refusal(accept(guest.http, made["token"])) == (404, "invite_not_found")
    assert owner.http.get(f"/api/tenants/{owner.tenant_id}/invites").json()["items"] == []


def test_of_twenty_who_accept_at_once_one_does(api: Api) -> None:
    owner, guest = api.person(), api.person()
    token = invite(owner.http, owner.tenant_id, guest.email)["token"]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: accept(api.client(guest.token), token), range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [404] * 19
    assert list(members(owner.http, owner.tenant_id).values()).count("member") == 1


def test_a_token_opens_nothing_for_others_later_or_after_it_was_revoked(api: Api) -> None:
    owner, guest, other = api.person(), api.person(), api.person()
    made = invite(owner.http, owner.tenant_id, guest.email)
    assert refusal(accept(other.http, made["token"])) == (403, "invite_for_another_email")
    assert refusal(accept(guest.http, "fli_" + "0" * 64)) == (404, "invite_not_found")
    assert accept(api.key(owner.tenant_id, "admin"), made["token"]).json()["code"] == "needs_person"

    with api.services.database.tenant(owner.tenant_id) as session:
        session.execute(sa.update(models.invites).values(expires_at=sa.func.now()))
    assert refusal(accept(guest.http, made["token"])) == (410, "invite_expired")
    path = f"/api/tenants/{owner.tenant_id}/invites/{made['invite']['id']}"
    again = owner.http.post(f"{path}/resend").json()
    assert again["token"] != made["token"]
    assert refusal(accept(guest.http, made["token"])) == (404, "invite_not_found")
    assert owner.http.delete(path).status_code == 204
    assert refusal(accept(guest.http, again["token"])) == (404, "invite_not_found")
    assert refusal(owner.http.delete(path)) == (404, "not_found")
    assert refusal(owner.http.post(f"{path}/resend")) == (404, "not_found")
    assert guest.user_id not in members(owner.http, owner.tenant_id)


def test_inviting_somebody_again_replaces_what_was_pending(api: Api) -> None:
    owner, guest = api.person(), api.person()
    first = invite(owner.http, owner.tenant_id, guest.email, "viewer")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: invite(owner.http, owner.tenant_id, guest.email.upper()), range(8)))
    pending = owner.http.get(f"/api/tenants/{owner.tenant_id}/invites").json()["items"]
    assert len(pending) == 1
    (left,) = [one for one in made if one["invite"]["id"] == pending[0]["id"]]
    assert refusal(accept(guest.http, first["token"])) == (404, "invite_not_found")
    assert accept(guest.http, left["token"]).json()["role"] == "member"
    body = {"email": guest.email, "role": "viewer"}
    assert refusal(owner.http.post(f"/api/tenants/{owner.tenant_id}/invite", json=body)) == (409, "already_member")


def test_of_a_token_only_a_hash_is_stored(api: Api) -> None:
    owner = api.person()
    token = invite(owner.http, owner.tenant_id, "x@example.com")["token"]
    with api.services.database.system() as session:
        for table in ("invites", "audit"):
            assert token not in str(session.rows(sa.text(f"SELECT * FROM {table}")))
    assert token not in owner.http.get(f"/api/tenants/{owner.tenant_id}/invites").text


def test_who_has_no_account_registers_through_the_invitation(api: Api) -> None:
    owner = api.person(organization="Acme")
    token = invite(owner.http, owner.tenant_id, "new@example.com", "viewer")["token"]
    body = {"email": "New@example.com", "password": PASSWORD, "invite": token}
    made = api.client().post("/api/auth/register", json=body).json()
    assert made["tenant"] == {"id": owner.tenant_id, "name": "Acme", "role": "viewer"}
    me = api.client(made["token"]).get("/api/me").json()
    assert me["tenant"] == made["tenant"]
    assert {tenant["role"] for tenant in me["tenants"]} == {"viewer", "owner"}
    login = api.client().post("/api/auth/login", json={"email": "new@example.com", "password": PASSWORD}).json()
    assert login["tenants"][0]["id"] == owner.tenant_id


def test_registering_with_a_bad_invitation_makes_no_account(api: Api) -> None:
    owner = api.person()
    token = invite(owner.http, owner.tenant_id, "meant@example.com")["token"]
    for email, code in (("other@example.com", "invite_for_another_email"), ("meant@example.com", "invite_not_found")):
        wrong = token if code != "invite_not_found" else "fli_x"
        answer = api.client().post("/api/auth/register", json={"email": email, "password": PASSWORD, "invite": wrong})
        assert answer.json()["code"] == code
        login = api.client().post("/api/auth/login", json={"email": email, "password": PASSWORD})
        assert login.json()["code"] == "bad_credentials"


def test_nobody_hands_out_or_takes_away_more_than_they_may(api: Api) -> None:
    owner = api.person()
    admin, member = joined(api, owner, "admin"), joined(api, owner)
    inside, there = f"/api/tenants/{owner.tenant_id}", {"X-Tenant-ID": owner.tenant_id}
    made = invite(owner.http, owner.tenant_id, "boss@example.com", "owner")["invite"]["id"]
    for client in (admin.http, api.key(owner.tenant_id, "admin")):
        assert refusal(client.post(f"{inside}/invite", json={"email": "x@example.com", "role": "owner"}))[0] == 403
        assert refusal(client.put(f"{inside}/members/{member.user_id}/role", json={"role": "owner"}))[0] == 403
        assert refusal(client.put(f"{inside}/members/{owner.user_id}/role", json={"role": "viewer"}))[0] == 403
        assert refusal(client.delete(f"{inside}/members/{owner.user_id}"))[0] == 403
        assert refusal(client.delete(f"{inside}/invites/{made}"))[0] == 403
        assert refusal(client.post(f"{inside}/invites/{made}/resend"))[0] == 403
    assert admin.http.put(f"{inside}/members/{member.user_id}/role", json={"role": "admin"}).json()["role"] == "admin"
    key = {"name": "k", "scopes": ["admin"]}
    assert member.http.post("/api/keys", json=key, headers=there).status_code == 201
    assert refusal(joined(api, owner).http.post("/api/keys", json=key, headers=there)) == (403, "forbidden")


def test_a_new_role_counts_from_the_next_request_on(api: Api) -> None:
    owner = api.person()
    guest = joined(api, owner)
    there = {"X-Tenant-ID": owner.tenant_id}
    body = {"name": "W", "trigger_type": "webhook", "action_type": "slack_message", "config_json": {}}
    assert guest.http.post("/api/workflows", json=body, headers=there).status_code == 422
    path = f"/api/tenants/{owner.tenant_id}/members/{guest.user_id}"
    changed = owner.http.put(f"{path}/role", json={"role": "viewer"})
    assert changed.json() | {"joined_at": ""} == {
        "user_id": guest.user_id,
        "email": guest.email,
        "role": "viewer",
        "joined_at": "",
    }
    assert refusal(guest.http.post("/api/workflows", json=body, headers=there)) == (403, "forbidden")
    assert owner.http.delete(path).status_code == 204
    assert refusal(guest.http.get("/api/workflows", headers=there)) == (403, "not_a_member")
    assert refusal(owner.http.delete(path)) == (404, "not_found")


def test_everybody_may_leave_but_the_last_owner(api: Api) -> None:
    owner = api.person()
    viewer = joined(api, owner, "viewer")
    inside = f"/api/tenants/{owner.tenant_id}/members"
    assert refusal(viewer.http.delete(f"{inside}/{owner.user_id}")) == (403, "forbidden")
    assert viewer.http.delete(f"{inside}/{viewer.user_id}").status_code == 204
    assert refusal(owner.http.delete(f"{inside}/{owner.user_id}")) == (409, "last_owner")
    change = owner.http.put(f"{inside}/{owner.user_id}/role", json={"role": "admin"})
    assert refusal(change) == (409, "last_owner")
    assert owner.http.put(f"{inside}/{owner.user_id}/role", json={"role": "owner"}).status_code == 200


def test_two_owners_who_demote_each_other_at_once_leave_one(api: Api) -> None:
    def demote(by: Person, whom: Person, tenant_id: str) -> int:
        path = f"/api/tenants/{tenant_id}/members/{whom.user_id}/role"
        return by.http.put(path, json={"role": "viewer"}).status_code

    for _ in range(5):
        owner = api.person()
        other, tenant_id = joined(api, owner, "owner"), owner.tenant_id
        with ThreadPoolExecutor(2) as pool:
            codes = sorted(pool.map(demote, (owner, other), (other, owner), (tenant_id, tenant_id)))
        assert codes[0] == 200
        assert codes[1] in (403, 409)
        with api.services.database.tenant(tenant_id) as session:
            roles = session.execute(sa.select(models.memberships.c.role)).scalars().all()
        assert sorted(roles) == ["owner", "viewer"]


def test_keys_are_shown_once_listed_without_secret_and_revoked_at_once(api: Api) -> None:
    owner = api.person()
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    body = {"name": "deploy", "scopes": ["runs:read", "runs:read"], "expires_at": expires}
    made = owner.http.post("/api/keys", json=body).json()
    key, secret = made["key"], made["secret"]
    assert secret.startswith(key["prefix"])
    assert key["scopes"] == ["runs:read"]
    assert api.client(secret).get("/api/runs").status_code == 200
    listed = owner.http.get("/api/keys")
    assert secret not in listed.text
    (row,) = listed.json()["items"]
    assert row["last_used_at"] is not None
    assert owner.http.delete(f"/api/keys/{key['id']}").status_code == 204
    assert refusal(api.client(secret).get("/api/runs")) == (401, "invalid_token")
    assert refusal(owner.http.delete(f"/api/keys/{key['id']}")) == (404, "not_found")
    past = {"name": "k", "scopes": ["admin"], "expires_at": "2020-01-01T00:00:00Z"}
    assert owner.http.post("/api/keys", json=past).json()["errors"][0]["pointer"] == "/expires_at"
    assert owner.http.post("/api/keys", json={"name": "k", "scopes": ["everything"]}).status_code == 422


def test_logging_out_everywhere_ends_every_token_and_no_key(api: Api) -> None:
    owner = api.person()
    second = api.client(owner.http.post("/api/auth/switch", json={"tenant_id": owner.tenant_id}).json()["token"])
    key = api.key(owner.tenant_id, "runs:read")
    assert owner.http.post("/api/auth/logout-everywhere").status_code == 204
    for client in (owner.http, second):
        assert refusal(client.get("/api/me")) == (401, "token_revoked")
    assert key.get("/api/me").status_code == 200
    assert refusal(key.post("/api/auth/logout-everywhere")) == (403, "needs_person")
    login = api.client().post("/api/auth/login", json={"email": owner.email, "password": PASSWORD}).json()
    fresh = api.client(login["token"])
    assert fresh.get("/api/me").status_code == 200
    switched = fresh.post("/api/auth/switch", json={"tenant_id": owner.tenant_id}).json()["token"]
    assert api.client(switched).get("/api/me").status_code == 200


def test_a_suspended_organization_answers_clearly_everywhere(api: Api) -> None:
    owner = api.person(organization="Late Payers")
    workflow_id = owner.workflow()
    key = api.key(owner.tenant_id, "runs:read")
    book = Plans(api.services.database, api.services.lanes)
    with api.services.database.system() as session:
        book.suspend(session, owner.tenant_id)
    login = {"email": owner.email, "password": PASSWORD}
    for answer in (
        owner.http.get("/api/me"),
        key.get("/api/runs"),
        api.client().post("/api/auth/login", json=login),
    ):
        assert refusal(answer) == (403, "tenant_suspended")
        assert "Late Payers" in answer.json()["detail"]
    assert refusal(api.client().post(f"/api/webhooks/{workflow_id}", json={})) == (409, "tenant_suspended")
    other = api.person()
    token = invite(other.http, other.tenant_id, owner.email)["token"]
    with api.services.database.system() as session:
        book.resume(session, owner.tenant_id)
    assert accept(owner.http, token).status_code == 200
    with api.services.database.system() as session:
        book.suspend(session, owner.tenant_id)
    assert api.client().post("/api/auth/login", json=login).json()["tenants"][0]["id"] == other.tenant_id


def test_credentials_are_used_without_being_seen_and_say_by_what(api: Api) -> None:
    owner = api.person()
    member = joined(api, owner)
    there = {"X-Tenant-ID": owner.tenant_id}
    data = {"service": "http", "name": "shop", "data": {"bearer": "hush-hush-hush"}}
    secret_id = owner.http.post("/api/credentials", json=data).json()["id"]
    assert refusal(member.http.post("/api/credentials", json=data, headers=there)) == (403, "forbidden")
    step = {"id": "s", "action": "http.request", "credential": "shop", "with": {"url": "https://example.com"}}
    body = {"name": "Uses it", "definition": {"trigger": {"type": "manual"}, "steps": [step]}}
    workflow = member.http.post("/api/workflows", json=body, headers=there)
    assert workflow.status_code == 201
    used = member.http.get(f"/api/credentials/{secret_id}/workflows", headers=there)
    assert used.json()["items"] == [{"id": workflow.json()["id"], "name": "Uses it"}]
    seen = member.http.get("/api/credentials", headers=there).text + used.text + workflow.text
    assert "hush" not in seen
    assert owner.http.get(f"/api/credentials/{secret_id}/decryptions").json()["items"] == []


@pytest.mark.parametrize(
    "password", ["password", "Password123", "12345678", "qwertyuiop", "aaaaaaaaaa", "weak@example.com"]
)
def test_passwords_that_are_tried_first_are_refused(api: Api, password: str) -> None:
    answer = api.client().post("/api/auth/register", json={"email": "weak@example.com", "password": password})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/password"]
    assert password not in answer.text.replace("/password", "").replace("passwords", "")


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with mail_server() as mailbox:
        yield mailbox


@pytest.fixture
def mailing(database_url: str, redis_url: str, mailbox: Mailbox) -> Iterator[Api]:
    settings = settings_for(
        database_url,
        redis_url,
        smtp_url=f"smtp://127.0.0.1:{mailbox.port}",
        mail_from="Fairlane <hello@fairlane.example>",
        public_url="https://flow.example.com/",
    )
    with running_api(services_for(settings)) as running:
        yield running


def test_an_invitation_is_mailed_with_all_that_is_needed(mailing: Api, mailbox: Mailbox) -> None:
    owner = mailing.person(organization="Grüße & Co")
    made = invite(owner.http, owner.tenant_id, "guest@example.com", "viewer")
    assert made["mailed"] is True
    (mail,) = mailbox.mails
    text = mail.get_content()
    assert (mail["To"], mail["From"]) == ("guest@example.com", "Fairlane <hello@fairlane.example>")
    assert mail["Subject"] == "Invitation to Grüße & Co"
    for part in (made["token"], owner.email, "viewer", f"https://flow.example.com/invite#{made['token']}"):
        assert part in text
    path = f"/api/tenants/{owner.tenant_id}/invites/{made['invite']['id']}/resend"
    again = owner.http.post(path).json()
    assert again["token"] in mailbox.mails[1].get_content()


def test_a_mail_server_that_refuses_costs_the_mail_and_not_the_invitation(mailing: Api, mailbox: Mailbox) -> None:
    mailbox.refuse = True
    owner, guest = mailing.person(), mailing.person()
    made = invite(owner.http, owner.tenant_id, guest.email)
    assert made["mailed"] is False
    assert accept(guest.http, made["token"]).status_code == 200


def test_while_they_are_rolled_out_organizations_are_for_new_sign_ups_and_who_was_let_in(
    database_url: str, redis_url: str
) -> None:
    settings = settings_for(database_url, redis_url, organizations="new")
    with running_api(services_for(settings)) as api:
        old, new = api.person(), api.person()
        with api.services.database.system() as session:
            migrated = sa.update(models.tenants).where(models.tenants.c.id == old.tenant_id)
            session.execute(migrated.values(organizations=False))
        body = {"email": "x@example.com", "role": "member"}
        assert new.http.post(f"/api/tenants/{new.tenant_id}/invite", json=body).status_code == 201
        for answer in (
            old.http.post(f"/api/tenants/{old.tenant_id}/invite", json=body),
            old.http.post("/api/tenants", json={"name": "Second"}),
        ):
            assert refusal(answer) == (403, "organizations_off")
        assert old.http.post("/api/workflows", json={"name": "W"}).status_code == 422
        assert accept(old.http, invite(new.http, new.tenant_id, old.email)["token"]).status_code == 200
        with api.services.database.system() as session:
            session.execute(migrated.values(organizations=True))
        assert old.http.post(f"/api/tenants/{old.tenant_id}/invite", json=body).status_code == 201
