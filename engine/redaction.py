"""Masks credential values in everything that is about to be stored: outputs, errors, log lines.

A `Redactor` is made of the plaintext of one credential and looks for each of its strings, also percent-encoded, as JSON
writes it, and as the base64 of HTTP basic authentication. Strings shorter than `MINIMUM_LENGTH` are left alone: masking
them would shred ordinary text and they protect nothing.

Each string is searched for by itself, since that takes time that grows with the length of the text only. One expression
of them all would try each at every place, for minutes in which no other thread runs, where a tenant wants it to.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from engine.ports import Json

MASK = "[redacted]"
MINIMUM_LENGTH = 5


class Redactor:
    """Callable on any JSON value; returns it with every secret replaced by `MASK`."""

    def __init__(self, *credentials: Json) -> None:
        self._credentials = credentials
        secrets = {form for credential in credentials for text in texts(credential) for form in _forms(text)}
        # the longest first, so that a secret that contains another is masked whole
        self._secrets = sorted((s for s in secrets if len(s) >= MINIMUM_LENGTH), key=len, reverse=True)

    def also(self, credential: Json) -> Redactor:
        """One that masks this credential too: what a rotated one replaces is a secret for as long as the step runs."""
        return self if credential in self._credentials else Redactor(*self._credentials, credential)

    def __call__(self, value: Json) -> Json:
        if not self._secrets:
            return value
        if isinstance(value, str):
            return self._masked(value)
        if isinstance(value, Mapping):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self(item) for item in value]
        return value

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return text


NOTHING_SECRET = Redactor()
"""For steps without a credential."""


def texts(value: Any) -> Iterator[str]:
    """Every string of a credential that is a secret, also what basic authentication makes of two of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        if isinstance(value.get("username"), str) and isinstance(value.get("password"), str):
            yield base64.b64encode(f"{value['username']}:{value['password']}".encode()).decode()
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def _forms(text: str) -> Iterator[str]:
    yield text
    yield quote(text, safe="")
    yield quote(text)
    yield quote_plus(text)
    yield json.dumps(text)[1:-1]
    yield json.dumps(text, ensure_ascii=False)[1:-1]
