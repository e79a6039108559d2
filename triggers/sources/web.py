"""What sources on the web share: where to look, and how to notice cheaply that nothing is new.

`fetch` sends what the server said of its last answer (``ETag``, ``Last-Modified``) and also knows that answer's hash,
so an unchanged page is neither sent nor read again by servers that play along, and never parsed again by us.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from engine.errors import Fatal
from engine.ports import HttpClient, Json

MAX_URL_LENGTH = 8192
MAX_VALIDATOR_LENGTH = 1000
"""A longer ``ETag`` is not worth keeping."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_SENT_BY_US = frozenset(
    {"connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or not text.isprintable() or " " in text or len(text) > MAX_URL_LENGTH:
        raise ValueError("write an address such as https://example.com/feed")
    if "@" in parts.netloc:
        raise ValueError("an address holds no user name and no password")
    return text


def _headers(given: dict[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if not _HEADER_NAME.fullmatch(name) or not (value.isascii() and (value.isprintable())):
            raise ValueError(f"{name[:100]!r} is not a header: a name and one line of ASCII text")
        if name.lower() in _SENT_BY_US or name.lower().startswith("proxy-"):
            raise ValueError(f"the header {name} cannot be set")
    return given


class WebInput(BaseModel):
    """The `with` of a source on the web."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_url)]
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default_factory=dict, max_length=50)
    """Sent with every request. They are stored as they are: no place for a password."""


@dataclass(frozen=True, slots=True)
class Page:
    """An answer, and the mark by which the next `fetch` knows it again; header names are lower case."""

    body: bytes
    headers: Mapping[str, str]
    mark: Json


def fetch(client: HttpClient, url: str, *, headers: Mapping[str, str], mark: Json = None) -> Page | None:
    """GET the page; None when it is still the one that `mark` was made of, or when the server has nothing (204).

    Raises what `HttpClient.fetch` raises, and Fatal for an answer that is neither a page nor an error.
    """
    known = mark if isinstance(mark, dict) and mark.get("url") == url else {}
    conditions = {
        condition: known[name]
        for condition, name in (("If-None-Match", "etag"), ("If-Modified-Since", "modified"))
        if known.get(name)
    }
    reply = client.fetch(url, headers={**conditions, **headers})
    if reply.status == 204 or (reply.status == 304 and known):
        return None
    if not 200 <= reply.status < 300:
        raise Fatal(f"The server answered {reply.status} instead of a page.", code="http_status")
    digest = hashlib.sha256(reply.body).hexdigest()
    if digest == known.get("sha256"):
        return None
    return Page(reply.body, reply.headers, _mark(url, digest, reply.headers))


def _mark(url: str, digest: str, headers: Mapping[str, str]) -> dict[str, str]:
    validators = {"etag": headers.get("etag", ""), "modified": headers.get("last-modified", "")}
    kept = {name: value for name, value in validators.items() if 0 < len(value) <= MAX_VALIDATOR_LENGTH}
    return {"url": url, "sha256": digest, **kept}
