"""Organizations are told once that their month is nearly used up, by a real receiver, mail server and Postgres."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from actions.guard import AddressPolicy
from actions.http import GuardedClient
from engine import audit, notices
from engine.audit import Actor
from engine.db import Row
from engine.mail import Mailer
from engine.notice_delivery import ATTEMPTS, Delivered, NoticeDelivery, pause
from engine.notices import Notices, marks_passed
from engine.runs import Runs, Start
from tests.api_server import settings_for
from tests.engine_parts import Parts, parts_for
from tests.mail_server import Mailbox, mail_server
from tests.outside_services import Answer, EchoService

NOW = datetime(2027, 3, 31, 12, tzinfo=UTC)
KEY = "the secret of the installation, which is long enough"
BY = Actor("user_ada")
DELIVERIES = "SELECT channel, target, state, attempts, error FROM notice_deliveries ORDER BY percent, channel, target"


@dataclass
class World:
    """``acme``, allowed ten runs a month, with two owners and a member; and ways to it."""

    parts: Parts
    receiver: EchoService
    mailbox: Mailbox
    now: datetime = NOW

    def __post_init__(self) -> None:
        self.parts.workflow({"id": "echo", "action": "debug.echo", "with": {}})
        for name, role in (("ada", "owner"), ("bob", "owner"), ("cyd", "member")):
            self.parts.fill(
                f"INSERT INTO users (id, email, password_hash) VALUES ('user_{name}', '{name}@example.com', 'x');"
                f"INSERT INTO memberships (tenant_id, user_id, role) VALUES ('acme', 'user_{name}', '{role}')"
            )
        self.limit(10)
        self.runs = Runs(self.parts.publisher, clock=lambda: self.now)
        mails = f"smtp://127.0.0.1:{self.mailbox.port}"
        self.mailer = Mailer(settings_for(self.parts.url, "redis://127.0.0.1:1", smtp_url=mails))
        self.url = f"{self.receiver.url}/hook"

    def limit(self, value: int | str) -> None:
        self.parts.fill(f"UPDATE tenants SET limits = '{{\"max_executions_per_month\": {value}}}'")

    def use(self, number: int) -> None:
        for _ in range(number):
            with self.parts.database.tenant("acme") as session:
                self.runs.start(session, Start(workflow_id="wf_1", trigger="api", input={}))

    def listen(self, url: str | None = None) -> str:
        with self.parts.database.tenant("acme") as session:
            return str(notices.set_target(session, BY, url or self.url, key=KEY)["secret"])

    def notice(self, *, mails: bool = False) -> int:
        return Notices(self.parts.database, mails=mails).run_once(self.now).notices

    def deliver(self, *, allowed: tuple[str, ...] = ("127.0.0.0/8",), after: timedelta = timedelta(0)) -> Delivered:
        with contextlib.closing(GuardedClient(AddressPolicy(allowed))) as client:
            delivery = NoticeDelivery(self.parts.database, post=client.post, mailer=self.mailer, key=KEY)
            return delivery.run_once(self.now + after)

    def said(self, action: str = "quota.notice") -> list[dict[str, Any]]:
        with self.parts.database.tenant("acme") as session:
            rows = list(audit.entries(session))
        assert audit.verify(rows).fault is None
        return [row["data"] for row in rows if row["action"] == action]

    def deliveries(self) -> list[Row]:
        return self.parts.rows(DELIVERIES)


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with parts_for(database_url) as parts, EchoService() as receiver, mail_server() as mailbox:
        yield World(parts, receiver, mailbox)


@pytest.mark.parametrize(
    ("used", "limit", "passed"),
    [
        (7, 10, ()),
        (8, 10, (80,)),
        (9, 10, (80,)),
        (10, 10, (80, 100)),
        (0, 10, ()),
        (0, 0, (80, 100)),
        (1, 0, (80, 100)),
        (79, 99, ()),
    ],
)
def test_a_mark_is_passed_when_that_share_is_used(used: int, limit: int, passed: tuple[int, ...]) -> None:
    assert marks_passed(used, limit) == passed


def test_each_mark_is_noticed_once_in_a_month_and_again_in_the_next(world: World) -> None:
    world.use(7)
    assert world.notice() == 0
    world.use(1)
    assert [world.notice(), world.notice()] == [1, 0]
    world.use(2)
    assert [world.notice(), world.notice()] == [1, 0]
    figures = {"limit": 10, "period": "2027-03"}
    assert world.said() == [{"percent": 80, "used": 8, **figures}, {"percent": 100, "used": 10, **figures}]
    world.now += timedelta(days=1)
    world.use(10)
    assert world.notice() == 2
    assert [(said["period"], said["percent"]) for said in world.said()[2:]] == [("2027-04", 80), ("2027-04", 100)]


def test_a_limit_of_zero_is_noticed_when_the_first_run_is_held(world: World) -> None:
    world.limit(0)
    assert world.notice() == 0
    world.use(1)
    assert [world.notice(), world.notice()] == [2, 0]
    assert [(said["percent"], said["used"], said["limit"]) for said in world.said()] == [(80, 0, 0), (100, 0, 0)]


@pytest.mark.parametrize("before", ["null", 100])
def test_what_was_used_before_a_limit_was_set_is_noticed_at_once(world: World, before: int | str) -> None:
    world.parts.fill("UPDATE plans SET limits = limits - 'max_queued_runs'")
    world.limit(before)
    world.use(9)
    assert world.notice() == 0
    world.limit(10)
    assert [world.notice(), world.notice()] == [1, 0]
    assert [said["used"] for said in world.said()] == [9]


def test_a_limit_that_is_raised_repeats_nothing(world: World) -> None:
    world.use(8)
    assert world.notice() == 1
    world.limit(100)
    world.use(1)
    assert world.notice() == 0
    world.use(71)
    assert world.notice() == 0
    world.use(20)
    assert world.notice() == 1
    assert [(said["percent"], said["limit"]) for said in world.said()] == [(80, 10), (100, 100)]


def test_without_a_limit_and_for_a_deleted_organization_there_are_no_notices(world: World) -> None:
    world.use(10)
    world.parts.fill("UPDATE tenants SET status = 'deleted'")
    assert world.notice() == 0
    world.parts.fill("UPDATE tenants SET status = 'active'")
    world.limit("null")
    world.use(1)
    assert world.notice() == 0


def test_many_at_once_make_and_send_each_notice_once(world: World) -> None:
    world.listen()
    world.use(10)
    with ThreadPoolExecutor(6) as crew:
        assert sum(crew.map(lambda _: world.notice(), range(6))) == 2
        assert sum(crew.map(lambda _: world.deliver().sent, range(6))) == 2
    assert len(world.said()) == len(world.receiver.received) == 2


def test_the_request_to_the_organizations_url_is_signed_as_standard_webhooks_says(world: World) -> None:
    secret = world.listen()
    world.now += timedelta(microseconds=5)
    world.use(9)
    world.notice()
    assert world.deliver() == Delivered(sent=1)
    (request,) = world.receiver.received
    assert (request.method, request.path) == ("POST", "/hook")
    assert request.headers["webhook-id"] == "quota_acme_2027-03_80"
    assert request.headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    signature = Webhook(secret).sign("quota_acme_2027-03_80", NOW, request.body.decode())
    assert request.headers["webhook-signature"] == signature
    assert json.loads(request.body) == {
        "type": "quota.notice",
        "timestamp": "2027-03-31T12:00:00Z",
        "data": {
            "organization": "acme",
            "quota": "max_executions_per_month",
            "percent": 80,
            "used": 9,
            "limit": 10,
            "period": "2027-03",
            "resets_at": "2027-04-01T00:00:00Z",
        },
    }
    assert world.deliver() == Delivered()


def test_what_is_not_taken_is_sent_again_with_the_same_id_and_body(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()
    world.receiver.script = [Answer(500), Answer(302, headers={"location": f"{world.receiver.url}/elsewhere"})]
    assert world.deliver() == Delivered(later=1)
    assert world.deliver(after=timedelta(seconds=9)) == Delivered()
    assert world.deliver(after=timedelta(seconds=10)) == Delivered(later=1)
    assert world.deliver(after=timedelta(seconds=31)) == Delivered(sent=1)
    assert (
        len({(request.path, request.headers["webhook-id"], request.body) for request in world.receiver.received}) == 1
    )
    assert len({request.headers["webhook-signature"] for request in world.receiver.received}) == 3
    assert [(row["state"], row["attempts"], row["error"]) for row in world.deliveries()] == [("sent", 3, None)]


def test_after_twelve_attempts_it_is_given_up_and_the_reason_can_be_seen(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()
    world.receiver.script = [Answer(503)] * ATTEMPTS
    late = timedelta(0)
    for attempt in range(1, ATTEMPTS):
        assert world.deliver(after=late) == Delivered(later=1)
        late += pause(attempt)
    assert world.deliver(after=late) == Delivered(given_up=1)
    assert timedelta(hours=5) < late < timedelta(hours=7)
    reason = f"{world.receiver.url} answered 503."
    (said,) = world.said("quota.notice_undelivered")
    assert said == {"channel": "webhook", "percent": 80, "period": "2027-03", "attempts": 12, "reason": reason}
    with world.parts.database.tenant("acme") as session:
        (row,) = notices.listed(session, after=None, limit=10)
    assert [(item["state"], item["error"]) for item in row["deliveries"]] == [("given_up", reason)]
    assert world.deliver(after=late * 2) == Delivered()


def test_a_url_into_our_own_network_is_not_called(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()
    assert world.deliver(allowed=()) == Delivered(later=1)
    assert world.receiver.received == []
    (row,) = world.deliveries()
    assert "may not be called: it is a loopback address" in row["error"]


def test_a_sender_that_dies_leaves_the_notice_to_be_sent_again(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()

    def dies(*_request: Any) -> int:
        raise SystemExit

    with pytest.raises(SystemExit):
        NoticeDelivery(world.parts.database, post=dies, mailer=world.mailer, key=KEY).run_once(NOW)
    assert world.deliver(after=timedelta(minutes=4)) == Delivered()
    assert world.deliver(after=timedelta(minutes=5)) == Delivered(sent=1)


def test_after_as_many_senders_that_died_as_attempts_are_made_it_is_given_up(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()
    world.parts.fill(f"UPDATE notice_deliveries SET attempts = {ATTEMPTS}")
    assert world.deliver() == Delivered(given_up=1)
    assert world.receiver.received == []
    (row,) = world.deliveries()
    assert (row["state"], row["error"]) == ("given_up", "No attempt came to an end.")
    assert [said["reason"] for said in world.said("quota.notice_undelivered")] == ["No attempt came to an end."]


def test_what_nobody_foresaw_is_an_attempt_and_holds_up_no_other(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice(mails=True)

    def fails(*_request: Any) -> int:
        raise LookupError("a secret")

    delivery = NoticeDelivery(world.parts.database, post=fails, mailer=world.mailer, key=KEY)
    with capture_logs() as lines:
        assert delivery.run_once(NOW) == Delivered(sent=2, later=1)
    assert [line["event"] for line in lines] == ["notice_failed"]
    (row,) = [row for row in world.deliveries() if row["channel"] == "webhook"]
    assert (row["state"], row["attempts"], row["error"]) == ("pending", 1, "It could not be sent (LookupError).")
    assert world.deliver(after=pause(1)) == Delivered(sent=1)


def test_who_takes_the_url_away_gets_nothing_more(world: World) -> None:
    world.listen()
    world.use(8)
    world.notice()
    with world.parts.database.tenant("acme") as session:
        notices.delete_target(session, BY)
    assert world.deliver() == Delivered(given_up=1)
    assert world.receiver.received == []


def test_each_owner_gets_a_mail_and_one_that_is_refused_is_tried_again(world: World) -> None:
    world.use(10)
    world.notice(mails=True)
    world.mailbox.refuse = True
    assert world.deliver() == Delivered(later=4)
    world.mailbox.refuse = False
    world.parts.fill("UPDATE memberships SET role = 'admin' WHERE user_id = 'user_bob'")
    assert world.deliver(after=timedelta(seconds=10)) == Delivered(sent=2, given_up=2)
    assert sorted((mail["To"], mail["Subject"]) for mail in world.mailbox.mails) == [
        ("ada@example.com", "Acme: 100 % of the runs of 2027-03 are used"),
        ("ada@example.com", "Acme: 80 % of the runs of 2027-03 are used"),
    ]
    text = next(mail.get_content() for mail in world.mailbox.mails if "100" in mail["Subject"])
    assert 'The organization "Acme" has used 10 of the 10 runs that its plan allows in 2027-03 (100 %).' in text
    assert "until 2027-04-01 00:00 UTC or a larger plan" in text


def test_a_secret_belongs_to_one_organization_and_one_setting_of_the_url(world: World) -> None:
    first, second = world.listen(), world.listen()
    assert first != second
    assert notices.secret(KEY, "acme", "s") != notices.secret(KEY, "beta", "s") != notices.secret("k" * 40, "beta", "s")
    stored = world.parts.rows("SELECT url, salt FROM notice_targets")
    assert second not in json.dumps(stored)
    assert [row["object"] for row in world.parts.rows("SELECT object FROM audit")] == [world.receiver.url] * 2
