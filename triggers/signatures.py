"""Who sent a webhook: Standard Webhooks (https://www.standardwebhooks.com), or GitHub's ``X-Hub-Signature-256``.

A request to a trigger with a secret must carry one of the two, made over the raw body. Standard Webhooks also signs
the id and a timestamp, taken up to five minutes off, so a recorded request cannot be sent again later or under another
id; ``X-Hub-Signature-256`` signs the body alone. Comparisons take the same time wherever the difference is.

A secret ``whsec_<base64>`` is a key in base64. Any other text is the key itself; when it happens to be base64 of at
least 24 bytes, the key that it encodes is taken too, because senders' libraries differ on what such a text means.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache

from standardwebhooks import Webhook, WebhookVerificationError

from engine.errors import Unauthenticated

PREFIX = "whsec_"
MIN_ENCODED_BYTES = 24
HUB_HEADER = "x-hub-signature-256"
STANDARD_HEADER = "webhook-signature"


def verify(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Raise Unauthenticated ``bad_signature`` unless the body was signed with `secret`; header names in lower case."""
    if STANDARD_HEADER in headers:
        _verify_standard(secret, body, headers)
    elif HUB_HEADER in headers:
        _verify_hub(secret, body, headers[HUB_HEADER])
    else:
        raise _bad("no signature; send webhook-id, webhook-timestamp and webhook-signature, or X-Hub-Signature-256")


def check_secret(secret: str) -> None:
    """Raise ValueError for a ``whsec_`` secret that encodes no key."""
    if not keys(secret):
        raise ValueError("after whsec_ comes the key in base64; 24 to 64 random bytes are right")


@lru_cache(maxsize=1024)
def keys(secret: str) -> tuple[bytes, ...]:
    """The keys that `secret` may stand for; none when it is malformed."""
    encoded = _decoded(secret.removeprefix(PREFIX))
    if secret.startswith(PREFIX):
        return (encoded,) if encoded else ()
    return (secret.encode(), encoded) if len(encoded) >= MIN_ENCODED_BYTES else (secret.encode(),)


def _verify_standard(secret: str, body: bytes, headers: Mapping[str, str]) -> None:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise _bad("Standard Webhooks signs text, and the body is not UTF-8; use X-Hub-Signature-256") from None
    reason = "no key"
    for key in keys(secret):
        try:
            Webhook(key).verify(text, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError) as error:  # ValueError: a signature that is not v1,<base64>
            reason = str(error) if isinstance(error, WebhookVerificationError) else "Malformed signature"
        else:
            return
    raise _bad(reason.lower())


def _verify_hub(secret: str, body: bytes, header: str) -> None:
    expected = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected.encode(), header.strip().encode()):
        raise _bad("X-Hub-Signature-256 is not that of this body")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _bad(reason: str) -> Unauthenticated:
    return Unauthenticated(f"The signature is not accepted: {reason}.", code="bad_signature")
