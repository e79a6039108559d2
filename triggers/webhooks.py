"""Webhooks: an HTTP request becomes a run that is stored before the answer.

`Receiver.receive` checks size, target and signature, in this order, and stores the run; what it returns will be
executed whatever dies next. When Postgres does not answer it raises Unavailable, nothing is stored, and the sender may
repeat; with the same ``webhook-id`` there is one run, however often and from how many sides it is sent.

Cost: one transaction of four round trips; whose workflow it is, is remembered (it hardly ever changes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from structlog.contextvars import bound_contextvars

from engine.db import Database, Row, TenantSession
from engine.definition import WebhookTrigger
from engine.errors import BadRequest, Conflict, Fault, InvalidInput, NotFound, TooLarge
from engine.ports import Json
from engine.repository import triggers as stored
from engine.runs import Runs, Start, Started
from engine.vault import Vault
from triggers import signatures
from triggers.bodies import read_body
from triggers.door import fire
from triggers.keys import short
from triggers.kinds import StartedFromOutside

REMEMBERED_WORKFLOWS = 16_384

_SECRET_NAME = re.compile(
    r"signature|secret|token|password|cookie|authorization|^(x-)?auth(-|$)"
    r"|^(x-)?key$|(api|access|auth|functions|subscription)[-_]?key"
)


class Webhook(StartedFromOutside):
    """The kind. A run's input is ``body``, ``headers`` (lower-case names, without proofs of identity) and ``query``."""

    type = "webhook"

    def first_fire(self, workflow_id: str, trigger: WebhookTrigger, now: datetime) -> datetime | None:
        if trigger.secret is not None:
            try:
                signatures.check_secret(trigger.secret)
            except ValueError as error:
                raise InvalidInput([Fault("/trigger/secret", str(error))]) from None
        return super().first_fire(workflow_id, trigger, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A request to ``/api/webhooks/{workflow_id}``, as it came: names and values may repeat."""

    workflow_id: str
    body: bytes
    headers: Iterable[tuple[str, str]] = ()
    query: Iterable[tuple[str, str]] = ()


class Receiver:
    """See the module. One for each process; threads may share it."""

    def __init__(self, database: Database, runs: Runs, vault: Vault, *, max_bytes: int) -> None:
        self._database = database
        self._runs = runs
        self._vault = vault
        self._max_bytes = max_bytes
        self._tenant_of = lru_cache(maxsize=REMEMBERED_WORKFLOWS)(self._find_tenant)

    def receive(self, delivery: Delivery) -> Started:
        """Store the run of a request, or find that of the same ``webhook-id``.

        Raises TooLarge (413), NotFound (404), BadRequest ``not_a_webhook`` or ``invalid_body`` (400), Unauthenticated
        ``bad_signature`` (401), Conflict ``workflow_inactive`` (409), Unavailable (503).
        """
        if len(delivery.body) > self._max_bytes:
            raise TooLarge(f"The body has {len(delivery.body)} bytes; at most {self._max_bytes} are taken.")
        tenant_id = self._tenant_of(delivery.workflow_id)
        try:
            return self._receive(tenant_id, delivery)
        except (NotFound, Conflict) as error:
            if isinstance(error, Conflict) and error.error_code != "tenant_suspended":
                raise
            # It or its organization is gone, or it has moved to another one since it was looked up.
            now = self._find_tenant(delivery.workflow_id)
            if now == tenant_id:
                raise
            self._tenant_of.cache_clear()
            return self._receive(now, delivery)

    def _receive(self, tenant_id: str, delivery: Delivery) -> Started:
        headers = _by_lower_name(delivery.headers)
        with bound_contextvars(tenant=tenant_id), self._database.tenant(tenant_id) as session:
            target = _webhook(stored.webhook_target(session, delivery.workflow_id), delivery.workflow_id)
            self._check_signature(session, target, delivery.body, headers)
            if not target["is_active"]:
                reason = target["inactive_reason"] or "it was switched off"
                raise Conflict(f"The workflow is not active: {reason}.", code="workflow_inactive")
            return fire(session, self._runs, _start(delivery, headers))

    def _find_tenant(self, workflow_id: str) -> str:
        with self._database.system() as session:
            tenant_id = None if "\0" in workflow_id else stored.tenant_of(session, workflow_id)
        if tenant_id is None:
            raise _unknown(workflow_id)
        return tenant_id

    def _check_signature(self, session: TenantSession, target: Row, body: bytes, headers: dict[str, str]) -> None:
        if target["secret"] is None:
            return
        secret = self._vault.open(session, target["secret"]).get_secret_value()["secret"]
        signatures.verify(secret, body, headers)


def _webhook(target: Row | None, workflow_id: str) -> Row:
    if target is None:
        raise _unknown(workflow_id)
    if target["type"] != Webhook.type:
        raise BadRequest(
            f"The workflow is not started by webhooks but by {target['type'] or 'nothing'}.", code="not_a_webhook"
        )
    return target


def _unknown(workflow_id: str) -> NotFound:
    return NotFound(f"There is no workflow {workflow_id!r}.")


def _start(delivery: Delivery, headers: dict[str, str]) -> Start:
    message_id = headers.get("webhook-id", "").strip()
    data: dict[str, Json] = {
        "body": read_body(delivery.body, headers.get("content-type", "")),
        "headers": {name: value for name, value in headers.items() if not _is_secret(name)},
        "query": _query(delivery.query),
    }
    return Start(
        workflow_id=delivery.workflow_id,
        trigger=Webhook.type,
        input=data,
        idempotency_key=f"webhook:{delivery.workflow_id}:{short(message_id)}" if message_id else None,
    )


def _by_lower_name(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """A header that came several times is joined with commas."""
    found: dict[str, str] = {}
    for name, value in ((name.lower(), value) for name, value in headers):
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _is_secret(name: str) -> bool:
    """Whether a header proves who sent it; runs do not keep those."""
    return _SECRET_NAME.search(name) is not None


def _query(pairs: Iterable[tuple[str, str]]) -> dict[str, Json]:
    """A name that came several times has the list of its values."""
    found: dict[str, Json] = {}
    for name, value in pairs:
        if name not in found:
            found[name] = value
        elif isinstance(found[name], list):
            found[name].append(value)
        else:
            found[name] = [found[name], value]
    return found
