"""Sends notices: at least once, with the same ``webhook-id`` each time, until they arrive or are given up.

A delivery is claimed for some minutes before it is sent, so that one whose sender dies is sent again. What is not taken
is tried again after 10 s, then after twice as long each time; after twelve attempts, which is some six hours, it is
given up, and the audit and the log say why. A receiver that hangs costs ten seconds and holds up no more than its own.
So does what nobody foresaw: it is an attempt like others, and so is one whose sender died.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import structlog
from standardwebhooks import Webhook

from engine import audit, notices
from engine.db import Database, Row
from engine.errors import ActionError
from engine.mail import Mailer
from engine.repository import notices as stored
from engine.usage import Period

ATTEMPTS = 12
FIRST_PAUSE = timedelta(seconds=10)
CLAIM = timedelta(minutes=5)
BATCH = 50
AT_ONCE = 8

UNDELIVERED = "quota.notice_undelivered"

LETTER = """\
The organization "{name}" has used {used:,} of the {limit:,} runs that its plan allows in {period} ({percent} %).

{sentence}
"""
NEAR = "Runs over the limit are held, or refused if your operator set it so, until {resets} 00:00 UTC."
REACHED = "Further runs are held, or refused if your operator set it so, until {resets} 00:00 UTC or a larger plan."

Post = Callable[[str, Mapping[str, str], bytes], int]
"""Posts a body to a URL, under all guards of outbound calls, and follows nowhere; the status. Raises ActionError."""
Outcome = Literal["sent", "later", "given_up"]

log = structlog.get_logger(__name__)


class Undelivered(Exception):
    """Why an attempt came to nothing, in words; `final` when no other can do better."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True, slots=True)
class Delivered:
    """What one pass did."""

    sent: int = 0
    later: int = 0
    given_up: int = 0


class NoticeDelivery:
    """Any number may run. `key` is the installation's secret."""

    def __init__(self, database: Database, *, post: Post, mailer: Mailer, key: str) -> None:
        self._database = database
        self._post = post
        self._mailer = mailer
        self._key = key

    def run_once(self, now: datetime | None = None) -> Delivered:
        """Send what is due, by the clock of this machine unless `now` is given."""
        moment = now or datetime.now(UTC)
        with self._database.system() as session:
            rows = stored.claim(session, now=moment, until=moment + CLAIM, limit=BATCH)
        if not rows:
            return Delivered()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="notice") as crew:
            outcomes = list(crew.map(lambda row: self._deliver(row, moment), rows))
        return Delivered(outcomes.count("sent"), outcomes.count("later"), outcomes.count("given_up"))

    def _deliver(self, row: Row, now: datetime) -> Outcome:
        try:
            if row["attempts"] > ATTEMPTS:
                raise Undelivered("No attempt came to an end.", final=True)
            self._send(row, now)
        except Undelivered as error:
            return self._put_off(row, error, now)
        except Exception as error:  # whatever it is: this attempt is made, and others wait behind it
            log.exception("notice_failed", tenant=row["tenant_id"], channel=row["channel"])
            return self._put_off(row, Undelivered(f"It could not be sent ({type(error).__name__})."), now)
        with self._database.system() as session:
            stored.mark(session, row, state="sent", sent_at=now, error=None)
        return "sent"

    def _send(self, row: Row, now: datetime) -> None:
        if row["channel"] == "webhook":
            self._send_webhook(row, now)
        else:
            self._send_mail(row)

    def _send_webhook(self, row: Row, now: datetime) -> None:
        if row["url"] is None:
            raise Undelivered("The organization has no URL for notices any more.", final=True)
        name = notices.message_id(row["tenant_id"], Period(row["period"]), row["percent"])
        body = notices.body(row)
        signature = Webhook(notices.secret(self._key, row["tenant_id"], row["salt"])).sign(name, now, body.decode())
        headers = {
            "content-type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": signature,
        }
        try:
            status = self._post(row["url"], headers, body)
        except ActionError as error:
            raise Undelivered(error.detail) from error
        if not 200 <= status < 300:
            raise Undelivered(f"{notices.origin(row['url'])} answered {status}.")

    def _send_mail(self, row: Row) -> None:
        if row["email"] is None:
            raise Undelivered("The account is no owner of the organization any more.", final=True)
        period = Period(row["period"])
        sentence = (NEAR if row["percent"] < notices.MARKS[-1] else REACHED).format(resets=f"{period.end:%Y-%m-%d}")
        figures = {"used": row["used"], "limit": row["monthly"], "percent": row["percent"], "period": period}
        text = LETTER.format(name=row["name"], sentence=sentence, **figures)
        subject = f"{row['name']}: {row['percent']} % of the runs of {period} are used"
        if not self._mailer.send(to=row["email"], subject=subject, text=text):
            raise Undelivered("The mail server did not take it.")

    def _put_off(self, row: Row, error: Undelivered, now: datetime) -> Outcome:
        if row["attempts"] < ATTEMPTS and not error.final:
            with self._database.system() as session:
                stored.mark(session, row, due_at=now + pause(row["attempts"]), error=str(error))
            return "later"
        said = {"channel": row["channel"], "percent": row["percent"], "period": str(Period(row["period"]))}
        with self._database.system() as session:
            if stored.mark(session, row, state="given_up", error=str(error)):
                told = {**said, "attempts": row["attempts"], "reason": str(error)}
                audit.record_for(session, row["tenant_id"], notices.MAKER, UNDELIVERED, notices.LIMIT, **told)
        log.warning("notice_given_up", tenant=row["tenant_id"], reason=str(error), **said)
        return "given_up"


def pause(attempts: int) -> timedelta:
    """How long after so many attempts the next one is made."""
    return FIRST_PAUSE * (1 << (attempts - 1))
