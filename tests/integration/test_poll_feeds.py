"""Hostile feeds end in the process that reads them: the one that asked gets a sentence, soon, and nothing else."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from engine.errors import Fatal
from engine.ports import Json
from triggers.sources import feed_child, rss

START = b'<rss version="2.0"><channel><item>'
END = b"</item></channel></rss>"
LAUGHS = "".join(
    f'<!ENTITY {name} "{f"&{below};" * 10}">\n' for below, name in zip("abcdefghi", "bcdefghij", strict=True)
).encode()

BOMBS = {
    "a billion laughs": b'<!DOCTYPE r [\n<!ENTITY a "ha">\n' + LAUGHS + b"]>" + START + b"<title>&j;</title>" + END,
    "one large entity, often": b'<!DOCTYPE r [\n<!ENTITY a "%b">\n]>%b<title>%b</title>%b'
    % (b"A" * 100_000, START, b"&a;" * 15_000, END),
    "an author of a million letters": START + b"<author>" + b"a" * 1_000_000 + b"</author>" + END,
    "tags inside tags": b"<rss>" + b"<a>" * 1_500_000,
    "tags without end": START + b"<a " * 1_500_000,
}


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rss, "CPU_SECONDS", 1)


def test_a_feed_is_read_in_a_process_of_its_own() -> None:
    feed = START + b"<title>One</title><guid>tag:1</guid>" + END
    (item,) = rss.read_feed(feed, {"content-type": "application/rss+xml"})
    assert (item["id"], item["title"]) == ("tag:1", "One")


def read(feed: bytes) -> str | list[dict[str, Json]]:
    """The items, or the code of the error."""
    try:
        return rss.read_feed(feed, {})
    except Fatal as error:
        return error.error_code


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_in_its_own_process_and_the_others_go_on(bomb: str) -> None:
    turns, over = 0, threading.Event()

    def go_on() -> None:
        nonlocal turns
        while not over.wait(0.01):
            turns += 1

    other = threading.Thread(target=go_on)
    other.start()
    memory, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    outcome = read(BOMBS[bomb])
    took = time.monotonic() - began
    over.set()
    other.join()
    assert outcome == "poll_not_a_feed" or len(outcome) <= feed_child.MAX_ENTRIES
    assert turns > took / 0.01 / 20, "another thread of this process stood still"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200 * 1024


@pytest.mark.usefixtures("short_patience")
@pytest.mark.parametrize("bomb", ["one large entity, often", "an author of a million letters"])
def test_what_takes_too_much_is_called_that(bomb: str) -> None:
    with pytest.raises(Fatal, match="too much time or memory"):
        rss.read_feed(BOMBS[bomb], {})


def test_a_feed_that_is_too_large_is_not_read_at_all() -> None:
    with pytest.raises(Fatal, match=r"has 5,242,881 bytes; at most 5,242,880"):
        rss.read_feed(b" " * (rss.MAX_FEED_BYTES + 1), {})


def test_a_feed_with_too_many_items_is_refused() -> None:
    feed = b'<rss version="2.0"><channel>' + b"<item/>" * (feed_child.MAX_ENTRIES + 1) + b"</channel></rss>"
    with pytest.raises(Fatal, match="it has 5001 items; at most 5000"):
        rss.read_feed(feed, {})


def test_a_feed_reads_no_file_and_sees_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the-secret")
    monkeypatch.setenv("FAIRLANE_SECRET_KEY", "the-secret")
    declared = f'<!DOCTYPE r [\n<!ENTITY x SYSTEM "file://{secret}">\n]>'.encode()
    assert "the-secret" not in str(rss.read_feed(declared + START + b"<title>a&x;b</title>" + END, {}))
    with pytest.raises(Fatal, match="neither RSS nor Atom"):  # a path alone is what feedparser would open
        rss.read_feed(str(secret).encode(), {})


def test_the_process_that_reads_loads_nothing_of_ours() -> None:
    program = f"import runpy, sys; sys.argv = ['x', '5']; runpy.run_path({str(rss._CHILD)!r}); print(*sys.modules)"
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert "feedparser" in done.stdout.split()
    ours = {"engine", "triggers", "actions", "sqlalchemy", "psycopg", "celery", "pydantic"}
    assert ours.isdisjoint(name.partition(".")[0] for name in done.stdout.split())
