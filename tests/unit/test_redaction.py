"""Masking the values of credentials, in whatever form they come back, at a cost that no tenant can drive up."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from engine.redaction import MASK, NOTHING_SECRET, Redactor

SECRET = 'pa"ss/ wörd\n&more'


@pytest.mark.parametrize(
    "form", [SECRET, quote(SECRET), quote(SECRET, safe=""), quote_plus(SECRET), json.dumps(SECRET)[1:-1]]
)
def test_a_secret_is_found_in_every_form_that_servers_send_it_back_in(form: str) -> None:
    assert Redactor({"basic": {"password": SECRET}})(f"<{form}>") == f"<{MASK}>"


def test_the_header_of_basic_authentication_is_a_secret_too() -> None:
    pair = base64.b64encode(b"ann:open sesame").decode()
    redact = Redactor({"basic": {"username": "ann", "password": "open sesame"}})
    assert redact({"seen": [f"Basic {pair}", 7, None]}) == {"seen": [f"Basic {MASK}", 7, None]}


def test_keys_are_masked_and_a_secret_within_another_leaves_no_rest() -> None:
    redact = Redactor({"short": "secret", "long": "secret-of-all"})
    assert redact({"a secret-of-all": "secret"}) == {f"a {MASK}": MASK}


def test_what_is_too_short_to_protect_anything_is_left_alone() -> None:
    assert Redactor({"pin": "1234"})("1234 people") == "1234 people"
    assert NOTHING_SECRET({"a": SECRET}) == {"a": SECRET}


def test_many_alike_secrets_cost_a_long_text_no_time_worth_telling() -> None:
    """As one expression these took two minutes, in which no other thread of the worker ran."""
    redact = Redactor({"headers": {f"X-{number}": f"aaaa{number:03d}" for number in range(100)}})
    text = "a" * 10_000_000
    assert redact(text) == text
