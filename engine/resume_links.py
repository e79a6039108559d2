"""Signed links by which somebody without an account answers what a run waits for: the bearer may answer, until then.

A token names one run of one tenant and the moment until which it holds, under an HMAC-SHA256. It is short enough for a
chat message. Who holds it can answer for that run and do nothing else; what waits no longer cannot be answered again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from engine.errors import Gone, NotFound

LIFETIME = timedelta(days=7)
_PURPOSE = b"fairlane resume link"
_MAX_TOKEN = 512


@dataclass(frozen=True, slots=True)
class ResumeLink:
    """What a token stands for."""

    tenant_id: str
    run_id: str


class ResumeLinks:
    """Makes and reads tokens under the installation's secret; `base_url` is how callers reach the API."""

    def __init__(self, secret: str, base_url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._key = hmac.digest(secret.encode(), _PURPOSE, hashlib.sha256)
        self._base_url = base_url.rstrip("/")
        self._clock = clock

    def url(self, tenant_id: str, run_id: str, *, lifetime: timedelta = LIFETIME) -> str:
        """Where an answer can be posted with no other proof than the link."""
        return f"{self._base_url}/api/runs/{run_id}/resume?token={self.token(tenant_id, run_id, lifetime=lifetime)}"

    def token(self, tenant_id: str, run_id: str, *, lifetime: timedelta = LIFETIME) -> str:
        body = "\n".join((tenant_id, run_id, str(int(self._clock() + lifetime.total_seconds())))).encode()
        return _encoded(body + self._sign(body))

    def read(self, token: str) -> ResumeLink:
        """Raises NotFound for what is not of our making, Gone ``link_expired`` for what held once."""
        try:
            raw = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError, ValueError):
            raise _no_link() from None
        body, signature = raw[:-32], raw[-32:]
        if len(token) > _MAX_TOKEN or not hmac.compare_digest(signature, self._sign(body)):
            raise _no_link()
        tenant_id, run_id, until = body.decode().split("\n")
        if self._clock() > int(until):
            raise Gone("This link has expired; answer in the console, or ask for another.", code="link_expired")
        return ResumeLink(tenant_id, run_id)

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _no_link() -> NotFound:
    return NotFound("This link does not belong to a run that waits.")
