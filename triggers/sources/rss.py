"""The source `rss`: the entries of an RSS or Atom feed.

The guarded client fetches; a process of its own reads the bytes (`triggers.sources.feed_child` says why), which costs
some 0.1 s of CPU and only when the feed has changed. A feed that does not end within that process's limits, is too
large, or is none, is a Fatal: it counts as a failed poll.

An item is ``id, title, link, summary, content, author, published, updated, tags, enclosures``; texts are as the feed
wrote them, HTML included. Its id is the feed's own, else the link, else the hash of what it says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pydantic_core
from pydantic import BaseModel

from engine.errors import Fatal, Unavailable
from engine.ports import HttpClient, Json, PollItem, PollResult
from triggers.sources.web import WebInput, fetch

MAX_FEED_BYTES = 5 * 1024 * 1024
CPU_SECONDS = 10
PATIENCE = 60.0
"""Seconds that it may take on a busy machine: only CPU time is the feed's own fault."""

_CHILD = Path(__file__).with_name("feed_child.py")
_ACCEPT = "application/atom+xml, application/rss+xml, application/xml;q=0.9, text/xml;q=0.8, */*;q=0.1"
_HEADERS_THAT_COUNT = ("content-type", "content-language")


class RssInput(WebInput):
    pass


class Rss:
    name = "rss"
    summary = "An RSS or Atom feed; each new entry starts a run."
    input_model: type[BaseModel] = RssInput

    def poll(self, parameters: RssInput, cursor: Json, client: HttpClient) -> PollResult:
        headers = {"accept": _ACCEPT, **parameters.headers}
        page = fetch(client, parameters.url, headers=headers, mark=cursor)
        if page is None:
            return PollResult([], cursor)
        said = {name: page.headers[name] for name in _HEADERS_THAT_COUNT if name in page.headers}
        items = read_feed(page.body, {**said, "content-location": parameters.url})
        return PollResult([PollItem(item["id"], item) for item in reversed(items)], page.mark)


def read_feed(body: bytes, headers: dict[str, str]) -> list[dict[str, Json]]:
    """The entries in the feed's own order: the newest first, by custom. Raises Fatal ``poll_not_a_feed``."""
    if len(body) > MAX_FEED_BYTES:
        raise _unreadable(f"it has {len(body):,} bytes; at most {MAX_FEED_BYTES:,} are read")
    done = _in_a_process(pydantic_core.to_json(headers) + b"\n" + body)
    if done is None or done.returncode < 0 or b"MemoryError" in done.stderr[-4096:]:
        raise _unreadable("it takes too much time or memory to read")
    if done.returncode != 0:
        raise _unreadable("the process that reads it ended with an error")
    answer = pydantic_core.from_json(done.stdout)
    if "problem" in answer:
        raise _unreadable(answer["problem"])
    items: list[dict[str, Json]] = answer["items"]
    return items


def _in_a_process(data: bytes) -> subprocess.CompletedProcess[bytes] | None:
    """None when it had to be stopped. The environment holds nothing of ours: that has keys in it."""
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LC_ALL": "C.UTF-8"}
    if libraries := os.environ.get("LD_LIBRARY_PATH"):
        environment["LD_LIBRARY_PATH"] = libraries
    command = [sys.executable, "-P", str(_CHILD), str(CPU_SECONDS)]
    try:
        return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return None
    except OSError as error:
        raise Unavailable(f"No process can be started to read the feed: {error}.") from error


def _unreadable(problem: str) -> Fatal:
    return Fatal(f"The feed cannot be read: {problem}.", code="poll_not_a_feed")
