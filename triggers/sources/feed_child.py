"""The process in which a feed of somebody else is read, alone with it and under limits that the kernel keeps.

feedparser copes with whatever the web calls a feed, but one line of a hostile feed can cost it minutes inside a
regular expression, which nothing can interrupt and which stops every other thread of its process (measured with 6.0.14:
4 s for an author's name of 30 KB, growing with the square), and an entity in a feed of 145 KB took 2.5 GB of memory. So
`triggers.sources.rss` starts this file as a program, for one feed, with the CPU seconds that it may take. The first
line of its input is a JSON object of response headers, the rest is the feed; it writes one JSON object, ``{"items":
[...]}`` or ``{"problem": sentence}``. Dying is its answer to a bomb.

It imports the standard library and feedparser only, and never lets that fetch: it is given bytes, not an address.
"""

from __future__ import annotations

import calendar
import contextlib
import hashlib
import io
import json
import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import feedparser

MEMORY_BYTES = 512 << 20
MAX_ENTRIES = 5000
MAX_TEXT = 50_000
"""Characters of one text of an item; longer ones are cut."""
MAX_PARTS = 50
"""Tags, and enclosures, of one item."""


def read_feed(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The items of a feed in its own order, or the problem with it."""
    options = {"response_headers": dict(headers), "sanitize_html": False, "resolve_relative_uris": False}
    feed = feedparser.parse(io.BytesIO(body), **options)  # type: ignore[attr-defined, no-untyped-call]
    entries = feed["entries"]
    if not entries and not feed.get("version"):
        return {"problem": "it is neither RSS nor Atom"}
    if len(entries) > MAX_ENTRIES:
        return {"problem": f"it has {len(entries)} items; at most {MAX_ENTRIES} are read"}
    return {"items": [_item(entry) for entry in entries]}


def _item(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Every key is always there; what a feed does not say is null, or an empty list."""
    content = next((part.get("value") for part in _list(entry, "content") if part.get("value")), None)
    enclosed = [link for link in _list(entry, "links") if link.get("rel") == "enclosure"]
    item = {
        "title": _text(entry, "title"),
        "link": _text(entry, "link"),
        "summary": _text(entry, "summary"),
        "content": None if content is None else str(content)[:MAX_TEXT],
        "author": _text(entry, "author"),
        "published": _moment(entry, "published_parsed"),
        "updated": _moment(entry, "updated_parsed"),
        "tags": [str(tag["term"])[:MAX_TEXT] for tag in _list(entry, "tags")[:MAX_PARTS] if tag.get("term")],
        "enclosures": [_enclosure(link) for link in enclosed[:MAX_PARTS]],
    }
    return {"id": _text(entry, "id") or item["link"] or _hash(item), **item}


def _text(entry: Mapping[str, Any], key: str) -> str | None:
    value = _get(entry, key)
    return str(value)[:MAX_TEXT] if value else None


def _list(entry: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = _get(entry, key)
    return value if isinstance(value, list) else []


def _moment(entry: Mapping[str, Any], key: str) -> str | None:
    """RFC 3339 in UTC; None for a date that cannot be read."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(calendar.timegm(_get(entry, key)), UTC).isoformat().replace("+00:00", "Z")
    return None


def _enclosure(link: Mapping[str, Any]) -> dict[str, str | None]:
    return {"url": _text(link, "href"), "type": _text(link, "type"), "length": _text(link, "length")}


def _get(entry: Any, key: str) -> Any:
    """As it stands: feedparser's own look-up answers a date that is missing with another one."""
    return dict.get(entry, key)


def _hash(item: Mapping[str, Any]) -> str:
    """The id of an item that has none: the same as long as the item says the same."""
    return hashlib.sha256(json.dumps(item, sort_keys=True).encode()).hexdigest()


def _confine(cpu_seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    with contextlib.suppress(OSError, ValueError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def answer(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """What `read_feed` says; a problem, too, where feedparser meets something that it did not expect."""
    try:
        return read_feed(body, headers)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return {"problem": f"reading it failed ({type(error).__name__})"}


def main() -> None:
    _confine(int(sys.argv[1]))
    headers = json.loads(sys.stdin.buffer.readline())
    sys.stdout.write(json.dumps(answer(sys.stdin.buffer.read(), headers)))


if __name__ == "__main__":
    main()
