"""Signatures of webhooks: both schemes, and everything that is no signature."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from engine.errors import Unauthenticated
from triggers import signatures

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"order": 1}'


def standard(
    secret: str | bytes, body: bytes = BODY, *, age: timedelta = timedelta(), message_id: str = "msg_1"
) -> dict[str, str]:
    at = datetime.now(UTC) - age
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, at, body.decode()),
    }


def hub(secret: str, body: bytes = BODY) -> dict[str, str]:
    return {"x-hub-signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


@pytest.mark.parametrize("minutes", [0, 4.8, -4.8])
def test_the_owner_of_the_secret_is_believed_for_five_minutes(minutes: float) -> None:
    signatures.verify(SECRET, BODY, standard(SECRET, age=timedelta(minutes=minutes)))


def test_the_hub_scheme_is_believed_too() -> None:
    signatures.verify(SECRET, BODY, hub(SECRET))


def test_while_a_secret_is_rotated_one_of_several_signatures_is_enough() -> None:
    headers = standard(SECRET)
    other = standard(b"another secret, that is rotated out")["webhook-signature"]
    headers["webhook-signature"] = f"v1a,whatever {other} {headers['webhook-signature']}"
    signatures.verify(SECRET, BODY, headers)


@pytest.mark.parametrize("secret", ["s3cret", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "schlüssel"])
def test_a_plain_text_is_the_key_itself(secret: str) -> None:
    signatures.verify(secret, BODY, standard(secret.encode()))
    signatures.verify(secret, BODY, hub(secret))


def test_a_plain_text_that_is_base64_of_a_whole_key_stands_for_that_key_too() -> None:
    secret = SECRET.removeprefix("whsec_")
    signatures.verify(secret, BODY, standard(secret))
    with pytest.raises(Unauthenticated):
        signatures.verify("abcd", BODY, standard(base64.b64decode("abcd")))


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        (dict, BODY, "no signature"),
        (lambda: standard(SECRET), b'{"order": 2}', "no matching signature"),
        (lambda: standard(b"of somebody else, 24 bytes"), BODY, "no matching signature"),
        (lambda: standard(SECRET, age=timedelta(minutes=6)), BODY, "too old"),
        (lambda: standard(SECRET, age=-timedelta(minutes=6)), BODY, "too new"),
        (lambda: standard(SECRET) | {"webhook-id": "msg_2"}, BODY, "no matching signature"),
        (lambda: standard(SECRET) | {"webhook-timestamp": "nan"}, BODY, "invalid"),
        (lambda: standard(SECRET) | {"webhook-timestamp": ""}, BODY, "missing"),
        (lambda: standard(SECRET) | {"webhook-signature": ""}, BODY, "missing"),
        (lambda: standard(SECRET) | {"webhook-signature": "v1"}, BODY, "malformed"),
        (lambda: standard(SECRET) | {"webhook-signature": "v1,a"}, BODY, "malformed"),
        (lambda: standard(SECRET), b"\xff\xfe", "not UTF-8"),
        (lambda: hub("another"), BODY, "not that of this body"),
        (lambda: hub(SECRET), b"{}", "not that of this body"),
        (lambda: {"x-hub-signature-256": "sha256=é"}, BODY, "not that of this body"),
        (lambda: hub(SECRET) | {"webhook-signature": "v1,AAAA"}, BODY, "missing"),
    ],
)
def test_everything_else_is_refused_with_the_reason(
    headers: Callable[[], dict[str, str]], body: bytes, says: str
) -> None:
    with pytest.raises(Unauthenticated, match=says) as caught:
        signatures.verify(SECRET, body, headers())
    assert caught.value.error_code == "bad_signature"
    assert SECRET not in caught.value.detail


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=30), st.binary(max_size=60))
def test_no_headers_however_odd_are_more_than_refused(signature: str, at: str, message_id: str, body: bytes) -> None:
    headers = {"webhook-signature": signature, "webhook-timestamp": at, "webhook-id": message_id}
    with pytest.raises(Unauthenticated):
        signatures.verify(SECRET, body, headers)
    with pytest.raises(Unauthenticated):
        signatures.verify(SECRET, body, {"x-hub-signature-256": signature})
