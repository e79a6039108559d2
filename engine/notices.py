"""Notices to an organization whose month is nearly or wholly used up: at 80 and at 100 % of its executions.

Each is made once in a month, whatever becomes of the limit meanwhile: the row of `quota_notices` is its only right to
exist. In the same transaction it is entered in the audit, and so is what is to be sent: to the organization's own URL,
and by mail to its owners where the installation has a mail server. `engine.notice_delivery` sends it.

Requests to the URL are signed (Standard Webhooks) with a secret that is made from the installation's and a salt of the
URL: it is shown when the URL is set, stands nowhere, and is another one each time the URL is set.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import structlog

from engine import audit, quotas
from engine.audit import Actor
from engine.db import Database, Row, TenantSession
from engine.errors import NotFound
from engine.repository import notices as stored
from engine.usage import Period

MARKS = (80, 100)
"""Percent of the month's executions."""
LIMIT = "max_executions_per_month"
MAKER = Actor("quotas")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """How many notices one pass made."""

    notices: int = 0


class Notices:
    """Makes what is due. Any number may run. `mails` says whether the installation has a mail server."""

    def __init__(self, database: Database, *, mails: bool) -> None:
        self._database = database
        self._mails = mails

    def run_once(self, now: datetime | None = None) -> Made:
        """As of `now`, by the clock of this machine unless given. One look at the counters when nothing is due.

        Before, what counters do not know yet of a new limit is counted: for notices, and for the gauge.
        """
        moment = now or datetime.now(UTC)
        quotas.recount(self._database, moment)
        with self._database.system() as session:
            due = stored.passed(session, Period.of(moment).first, first=MARKS[0], last=MARKS[-1])
        made = 0
        for row in due:
            with self._database.tenant(row["tenant_id"]) as session:
                made += self._make(session, moment)
        return Made(made)

    def _make(self, session: TenantSession, now: datetime) -> int:
        period = Period.of(now)
        made = 0
        for row in stored.passed(session, period.first, first=MARKS[0], last=MARKS[-1]):
            for percent in marks_passed(row["used"], row["monthly"]):
                figures = {"used": row["used"], "monthly": row["monthly"]}
                if not stored.insert(session, period=period.first, percent=percent, at=now, **figures):
                    continue
                places = self._places(session)
                stored.insert_deliveries(session, period=period.first, percent=percent, places=places, at=now)
                said = {"percent": percent, "used": row["used"], "limit": row["monthly"], "period": str(period)}
                audit.record(session, MAKER, "quota.notice", LIMIT, **said)
                log.info("quota_notice", tenant=session.tenant_id, **said)
                made += 1
        return made

    def _places(self, session: TenantSession) -> Sequence[tuple[str, str]]:
        webhook = [] if stored.target(session) is None else [("webhook", "")]
        return webhook + [("mail", user_id) for user_id in stored.owners(session) if self._mails]


def marks_passed(used: int, limit: int) -> tuple[int, ...]:
    """Those that so many executions have reached; of a limit of 0 all are."""
    return tuple(percent for percent in MARKS if used * 100 >= limit * percent)


def listed(session: TenantSession, *, after: tuple[str, int] | None, limit: int) -> list[Row]:
    """Notices with what became of sending them, the newest first, behind the month and percent `after`."""
    key = None if after is None else (Period.parse(after[0]).first, after[1])
    rows = stored.listed(session, after=key, limit=limit)
    return [{**row, "period": str(Period(row["period"]))} for row in rows]


def target(session: TenantSession) -> Row:
    """Where the organization wants to be told: url (None when nowhere), updated_at."""
    return stored.target(session) or {"url": None, "updated_at": None}


def set_target(session: TenantSession, by: Actor, url: str, *, key: str) -> Row:
    """Tell the organization there from now on; url, updated_at, and the `secret` that signs.

    `key` is the installation's secret.
    """
    salt = secrets.token_hex(16)
    row = stored.set_target(session, url=url, salt=salt)
    audit.record(session, by, "quota.notice_url_set", origin(url))
    return {**row, "secret": secret(key, session.tenant_id, salt)}


def delete_target(session: TenantSession, by: Actor) -> None:
    """Send nothing more there, not even what is waiting to be sent. Raises NotFound."""
    url = stored.delete_target(session)
    if url is None:
        raise NotFound("There is no URL for notices.")
    audit.record(session, by, "quota.notice_url_removed", origin(url))


def secret(key: str, tenant_id: str, salt: str) -> str:
    """What signs the requests to an organization's URL, in the form of Standard Webhooks."""
    digest = hmac.digest(key.encode(), f"fairlane notices\n{tenant_id}\n{salt}".encode(), hashlib.sha256)
    return f"whsec_{base64.b64encode(digest).decode()}"


def origin(url: str) -> str:
    """Scheme and host: the path may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def message_id(tenant_id: str, period: Period, percent: int) -> str:
    """The `webhook-id`: the same at every attempt."""
    return f"quota_{tenant_id}_{period}_{percent}"


def body(row: Row) -> bytes:
    """What is posted: the same at every attempt."""
    period = Period(row["period"])
    data = {
        "organization": row["tenant_id"],
        "quota": LIMIT,
        "percent": row["percent"],
        "used": row["used"],
        "limit": row["monthly"],
        "period": str(period),
        "resets_at": _written(period.end),
    }
    return json.dumps({"type": "quota.notice", "timestamp": _written(row["at"]), "data": data}).encode()


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
