"""Bounded bodies, waits and the classification of answers, as pure functions."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actions.replies import excerpt, failure, read_body, retry_after
from engine.errors import Fatal, RetryLater
from engine.ports import HttpReply

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "": bytes,
    "identity": bytes,
}


@given(
    data=st.binary(max_size=5000), cut=st.integers(min_value=1, max_value=600), name=st.sampled_from(sorted(PACKERS))
)
def test_a_body_comes_back_whole_however_it_is_cut(data: bytes, cut: int, name: str) -> None:
    packed = PACKERS[name](data)
    chunks = [packed[start : start + cut] for start in range(0, len(packed), cut)]
    assert read_body(chunks, encoding=name.upper()) == data


def test_raw_deflate_is_understood_as_browsers_do() -> None:
    data = b"hello " * 1000
    assert read_body([raw_deflate(data)], encoding="deflate") == data


@pytest.mark.parametrize("encoding", ["", "gzip", "deflate"])
def test_the_limit_counts_what_it_grows_to(encoding: str) -> None:
    packed = PACKERS[encoding](os.urandom(500) * 20)
    assert len(read_body([packed], encoding=encoding, limit=10_000)) == 10_000
    with pytest.raises(Fatal) as caught:
        read_body([packed], encoding=encoding, limit=9_999)
    assert caught.value.error_code == "response_too_large"


def test_what_carries_a_body_counts_too() -> None:
    empty_blocks = zlib.compressobj()
    pieces = [empty_blocks.compress(b"x")] + [empty_blocks.flush(zlib.Z_FULL_FLUSH) for _ in range(3)]
    with pytest.raises(Fatal):
        read_body(pieces + [b"\x00\x00\x00\xff\xff"] * 1000, encoding="deflate", limit=1000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "rot13"])
def test_an_encoding_that_was_not_asked_for_is_refused(encoding: str) -> None:
    with pytest.raises(Fatal) as caught:
        read_body([b"x"], encoding=encoding)
    assert caught.value.error_code == "response_encoding"


def test_broken_and_cut_off_compression_are_told_apart() -> None:
    with pytest.raises(Fatal):
        read_body([b"this is not gzip"], encoding="gzip")
    with pytest.raises(RetryLater) as caught:
        read_body([gzip.compress(os.urandom(1000))[:500]], encoding="gzip")
    assert caught.value.error_code == "response_incomplete"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("17", 17),
        ("1.5", 1.5),
        ("-5", 0),
        ("999999999", 86400),
        ("Sun, 01 Mar 2026 12:01:00 GMT", 60),
        ("Sun, 01 Mar 2026 11:00:00 GMT", 0),
        ("Sunday, 01-Mar-26 12:00:30 GMT", 30),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert retry_after(value, now=NOW) == expected


@given(st.text(max_size=40))
def test_no_header_breaks_the_reading_of_retry_after(value: str) -> None:
    wait = retry_after(value, now=NOW)
    assert wait is None or timedelta(0) <= wait <= timedelta(days=1)


@given(st.integers(min_value=300, max_value=599))
def test_only_passing_failures_may_be_tried_again(status: int) -> None:
    error = failure(HttpReply(status, {}, b"why"), subject="It")
    assert isinstance(error, RetryLater) == (status in {408, 425, 429} or status >= 500)
    assert error.data == {"status": status, "body": "why"}


def test_an_excerpt_is_short_text_without_nul() -> None:
    assert excerpt(b"a\x00b\xff") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert len(excerpt("é".encode() * 100_000)) == 501
