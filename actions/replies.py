"""What came back from outside: bodies of bounded size, and which answers are worth another attempt. No I/O.

Decompression is bounded while it happens, not after: a kilobyte of gzip that would grow to a gigabyte costs no more
memory than the limit. Only one layer of gzip or deflate is understood, which is all that the client asks for.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from engine.errors import Fatal, RetryLater
from engine.ports import HttpReply

MAX_BODY_BYTES = 10 * 1024 * 1024
EXCERPT_CHARACTERS = 500
MAX_RETRY_AFTER = timedelta(days=1)
RETRYABLE_STATUS = frozenset({408, 425, 429})

_STEP_BYTES = 256 * 1024


def too_large(limit: int) -> Fatal:
    return Fatal(f"The answer is larger than {limit:,} bytes.", code="response_too_large")


def read_body(chunks: Iterable[bytes], *, encoding: str, limit: int = MAX_BODY_BYTES) -> bytes:
    """The whole decoded body. `Fatal` when it, or what carries it, passes `limit`, or when it cannot be decoded."""
    inflater = _inflater(encoding)
    parts: list[bytes] = []
    carried = grown = 0
    for chunk in chunks:
        carried += len(chunk)
        if carried > limit:
            raise too_large(limit)
        for part in (chunk,) if inflater is None else inflater.feed(chunk):
            grown += len(part)
            if grown > limit:
                raise too_large(limit)
            parts.append(part)
    if inflater is not None and carried and not inflater.complete:
        raise RetryLater("The compressed answer ends too early.", code="response_incomplete")
    return b"".join(parts)


class _Inflater:
    """Decompresses in steps of bounded size; tells raw deflate from zlib by the first chunk, as browsers do."""

    def __init__(self, window: int) -> None:
        self._zlib = zlib.decompressobj(window)
        self._untried = window == zlib.MAX_WBITS

    @property
    def complete(self) -> bool:
        return self._zlib.eof

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        pending = chunk
        while pending and not self._zlib.eof:
            yield self._step(pending)
            pending = self._zlib.unconsumed_tail
        if not self._zlib.eof:
            # With the input used up, output may still be waiting inside.
            while tail := self._zlib.decompress(b"", _STEP_BYTES):
                yield tail

    def _step(self, data: bytes) -> bytes:
        untried, self._untried = self._untried, False
        try:
            return self._zlib.decompress(data, _STEP_BYTES)
        except zlib.error as error:
            if untried:
                self._zlib = zlib.decompressobj(-zlib.MAX_WBITS)
                return self._step(data)
            raise Fatal("The compressed answer cannot be decoded.", code="response_encoding") from error


def _inflater(encoding: str) -> _Inflater | None:
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return None
    if name in {"gzip", "x-gzip"}:
        return _Inflater(zlib.MAX_WBITS | 16)
    if name == "deflate":
        return _Inflater(zlib.MAX_WBITS)
    raise Fatal("The answer uses a content encoding that was not asked for.", code="response_encoding")


def retry_after(value: str | None, *, now: datetime | None = None) -> timedelta | None:
    """A ``Retry-After`` header, in either form (seconds, or an HTTP date), as a wait of at most a day; else None."""
    if not value:
        return None
    try:
        wait = timedelta(seconds=float(value))
    except (ValueError, OverflowError):
        try:
            moment = parsedate_to_datetime(value)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - (now or datetime.now(UTC))
    return min(max(wait, timedelta(0)), MAX_RETRY_AFTER)


def excerpt(body: bytes, *, characters: int = EXCERPT_CHARACTERS) -> str:
    """The beginning of a body as text, for a person who looks for the cause of a failure."""
    text = body[: characters * 4].decode("utf-8", "replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return text if len(text) <= characters else text[:characters] + "…"


def failure(
    reply: HttpReply, *, subject: str, detail: str = "", after: timedelta | None = None, code: str = "http_status"
) -> RetryLater | Fatal:
    """The error for an answer that is not a success: 408, 425, 429 and 5xx may be tried again, all else may not.

    `subject` says who answered, without secrets. `data` has the status and the beginning of the body.
    """
    sentence = f"{subject} answered {reply.status}{': ' + detail if detail else ''}."
    data: dict[str, Any] = {"status": reply.status, "body": excerpt(reply.body)}
    if reply.status in RETRYABLE_STATUS or reply.status >= 500:
        wait = after or retry_after(header(reply.headers, "retry-after"))
        return RetryLater(sentence, after=wait, code=code, data=data)
    return Fatal(sentence, code=code, data=data)


def header(headers: Mapping[str, str], name: str) -> str | None:
    """A header of a reply; names in replies are lower case."""
    return headers.get(name.lower())
