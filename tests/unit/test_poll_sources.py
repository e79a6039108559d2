"""What poll sources make of answers, good and bad, and what a trigger may ask of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.definition import PollTrigger
from engine.definition_checks import check_trigger
from engine.errors import Fatal
from engine.ports import HttpReply, Json
from triggers import SOURCES
from triggers.keys import MAX_ID_LENGTH, short
from triggers.sources import feed_child
from triggers.sources.http_json import HttpJson, HttpJsonInput
from triggers.sources.web import fetch

URL = "https://shop.example/orders"


class Pages:
    """An `HttpClient` that answers from memory, and keeps what it was asked."""

    def __init__(self, *answers: HttpReply) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, dict[str, str]]] = []

    def fetch(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> HttpReply:
        self.asked.append((url, dict(headers or {})))
        return self.answers.pop(0)


def page(value: Json, *, status: int = 200, **headers: str) -> HttpReply:
    return HttpReply(
        status, {name.replace("_", "-"): text for name, text in headers.items()}, json.dumps(value).encode()
    )


def ids(value: Json, **parameters: Any) -> list[str]:
    """The ids of what one poll of this answer finds."""
    found = HttpJson().poll(HttpJsonInput(url=URL, **parameters), None, Pages(page(value)))
    return [item.id for item in found.items]


# ------------------------------------------------------------------------------------------------------ http.json


@pytest.mark.parametrize(
    ("value", "parameters", "expected"),
    [
        ([{"id": 1}, {"id": 2}], {}, ["1", "2"]),
        ([{"id": 1}, {"id": 2}], {"newest_first": True}, ["2", "1"]),
        ({"data": {"orders": [{"id": "a"}]}}, {"items": "data.orders"}, ["a"]),
        ([[{"n": {"key": 1.5}}]], {"items": "0", "id": "n.key"}, ["1.5"]),
        (["x", "y"], {"id": ""}, ["x", "y"]),
        ([[7, "a"], [8, "b"]], {"id": "0"}, ["7", "8"]),
        ([], {}, []),
    ],
)
def test_a_list_is_found_at_its_path_and_an_id_in_each_item(
    value: Json, parameters: dict[str, Any], expected: list[str]
) -> None:
    assert ids(value, **parameters) == expected


@pytest.mark.parametrize(
    ("value", "parameters", "says"),
    [
        ({"id": 1}, {}, "there is no list at its root"),
        ([1], {"items": "data"}, "there is no list at 'data'"),
        ({"data": {"x": []}}, {"items": "data"}, "there is no list at 'data'"),
        ([{"id": None}], {}, "item 0 of the list has no id at 'id'"),
        ([{"id": 1}, {"id": ""}], {}, "item 1 of the list has no id"),
        ([{"id": True}], {}, "item 0 of the list has no id"),
        ([{"id": [1]}], {}, "item 0 of the list has no id"),
        ([{"id": 1}, "x"], {}, "item 1 of the list has no id"),
        ([[1]], {"id": "9" * 30}, "item 0 of the list has no id"),
        ([{"id": 1}], {"cursor": {"parameter": "since", "path": "at"}}, "the newest item has no cursor at 'at'"),
        ([{"id": 1, "at": "x" * 1001}], {"cursor": {"parameter": "since", "path": "at"}}, "a short text"),
    ],
)
def test_an_answer_of_another_shape_names_the_place(value: Json, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(Fatal, match=says) as caught:
        ids(value, **parameters)
    assert caught.value.error_code == "poll_shape"


@pytest.mark.parametrize("body", [b"<html>", b"[1e999]", b"[" * 5000, b'["\xff"]', b'["\\ud800"]', b"[1,]"])
def test_an_answer_that_is_no_json_is_final(body: bytes) -> None:
    with pytest.raises(Fatal, match="The answer is not accepted") as caught:
        HttpJson().poll(HttpJsonInput(url=URL), None, Pages(HttpReply(200, {}, body)))
    assert caught.value.error_code == "poll_not_json"


scalars = st.text(min_size=1) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(scalars), st.booleans())
def test_every_item_is_found_once_in_the_order_that_was_asked_for(values: list[Any], newest_first: bool) -> None:
    found = ids([{"key": value} for value in values], id="key", newest_first=newest_first)
    expected = [str(value) for value in values]
    assert found == (expected[::-1] if newest_first else expected)


@given(st.dictionaries(st.text("ab&=+% é", min_size=1), st.text("ab&=+% é", max_size=5)), scalars)
def test_the_cursor_is_put_into_the_query_and_nothing_else_of_it_changes(query: dict[str, str], at: Any) -> None:
    given_query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in query.items())
    parameters = HttpJsonInput.model_validate(
        {"url": f"{URL}?{given_query}&since=old", "cursor": {"parameter": "since", "path": "at"}}
    )
    client = Pages(page([{"id": 1, "at": at}]), page([]))
    first = HttpJson().poll(parameters, None, client)
    HttpJson().poll(parameters, first.cursor, client)
    asked = parse_qsl(urlsplit(client.asked[1][0]).query, keep_blank_values=True)
    assert asked == [*query.items(), ("since", str(at))]


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


def test_without_new_items_the_cursor_stays() -> None:
    parameters = HttpJsonInput.model_validate({"url": URL, "cursor": {"parameter": "since"}})
    client = Pages(page([{"id": 5}]), page([]), page([]))
    cursor: Json = None
    for _ in range(3):
        cursor = HttpJson().poll(parameters, cursor, client).cursor
    assert [url for url, _ in client.asked] == [URL, f"{URL}?since=5", f"{URL}?since=5"]


# ------------------------------------------------------------------------------------------------- unchanged pages


def test_what_the_server_said_of_a_page_is_asked_for_again_and_only_of_that_page() -> None:
    client = Pages(page([1], etag='"e"', last_modified="Mon, 05 Jan 2026 00:00:00 GMT"), page([1]), page([1]))
    first = fetch(client, URL, headers={"x-key": "k"})
    assert first is not None
    assert fetch(client, URL, headers={}, mark=first.mark) is None
    assert fetch(client, f"{URL}?page=2", headers={}, mark=first.mark) is not None
    conditions = {"If-None-Match": '"e"', "If-Modified-Since": "Mon, 05 Jan 2026 00:00:00 GMT"}
    assert [headers for _, headers in client.asked] == [{"x-key": "k"}, conditions, {}]


@pytest.mark.parametrize(("status", "mark"), [(204, None), (204, {"url": URL}), (304, {"url": URL, "etag": "e"})])
def test_a_server_may_say_that_there_is_nothing(status: int, mark: Json) -> None:
    assert fetch(Pages(HttpReply(status, {}, b"")), URL, headers={}, mark=mark) is None


@pytest.mark.parametrize("status", [101, 300, 304, 399])
def test_what_is_neither_a_page_nor_an_error_is_final(status: int) -> None:
    with pytest.raises(Fatal, match=f"answered {status}"):
        fetch(Pages(HttpReply(status, {}, b"")), URL, headers={})


# ----------------------------------------------------------------------------------------------------------- feeds

RSS = """<?xml version="1.0" encoding="{encoding}"?>
<!DOCTYPE rss PUBLIC "-//Netscape Communications//DTD RSS 0.91//EN" "http://my.netscape.com/rss-0.91.dtd">
<rss version="2.0"><channel><title>Shop</title>
<item><title>Grüße</title><link>/2</link><guid isPermaLink="false">two</guid>
  <description>&lt;b&gt;bold&lt;/b&gt;</description><author>A. Shop</author><category>new</category>
  <pubDate>Mon, 05 Jan 2026 10:00:00 +0200</pubDate>
  <enclosure url="https://shop.example/2.mp3" type="audio/mpeg" length="3"/></item>
<item><title>No guid</title><link>https://shop.example/1</link></item>
<item><title>Nothing but a title</title></item>
</channel></rss>"""

ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>Shop</title><entry><id>tag:1</id><title>One</title>
<link href="https://shop.example/1"/><content type="html">&lt;p&gt;text&lt;/p&gt;</content>
<updated>2026-01-05T10:00:00+02:00</updated></entry></feed>"""


@pytest.mark.parametrize("encoding", ["utf-8", "iso-8859-1", "utf-16", "windows-1252"])
def test_an_rss_feed_is_read_whatever_its_encoding(encoding: str) -> None:
    body = RSS.format(encoding=encoding).encode(encoding)
    items = feed_child.read_feed(body, {"content-location": "https://shop.example/feed"})["items"]
    assert items[0] == {
        "id": "two",
        "title": "Grüße",
        "link": "https://shop.example/2",
        "summary": "<b>bold</b>",
        "content": None,
        "author": "A. Shop",
        "published": "2026-01-05T08:00:00Z",
        "updated": None,
        "tags": ["new"],
        "enclosures": [{"url": "https://shop.example/2.mp3", "type": "audio/mpeg", "length": "3"}],
    }
    assert items[1]["id"] == "https://shop.example/1"
    assert len(items[2]["id"]) == 64


def test_an_atom_feed_is_read() -> None:
    (item,) = feed_child.read_feed(ATOM.encode(), {})["items"]
    assert (item["id"], item["content"], item["published"]) == ("tag:1", "<p>text</p>", None)
    assert item["updated"] == "2026-01-05T08:00:00Z"


def test_an_entry_without_id_and_link_keeps_its_id_as_long_as_it_says_the_same() -> None:
    def only(title: str) -> str:
        feed = f"<rss version='2.0'><channel><item><title>{title}</title></item></channel></rss>"
        return str(feed_child.read_feed(feed.encode(), {})["items"][0]["id"])

    assert only("a") == only("a") != only("b")


def test_texts_are_cut_and_lists_are_bounded() -> None:
    entry = f"<title>{'x' * 60_000}</title>" + "".join(f"<category>{n}</category>" for n in range(200))
    feed = f"<rss version='2.0'><channel><item>{entry}</item></channel></rss>"
    (item,) = feed_child.read_feed(feed.encode(), {})["items"]
    assert (len(item["title"]), len(item["tags"])) == (feed_child.MAX_TEXT, feed_child.MAX_PARTS)


@pytest.mark.parametrize("body", [b"", b"\0" * 50, b"hello", b"<!doctype html><html></html>", b"{}", b"\xff\xfe"])
def test_what_is_no_feed_is_said_to_be_none(body: bytes) -> None:
    assert feed_child.read_feed(body, {}) == {"problem": "it is neither RSS nor Atom"}


characters = st.characters(max_codepoint=0x7F) | st.characters(min_codepoint=0x100)
texts = st.text(characters.filter(str.isprintable), max_size=30).map(lambda text: f"x{text}x")
"""Without the upper half of Latin-1: feedparser mends what looks like UTF-8 that was taken for Latin-1."""


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), max_size=8))
def test_every_entry_of_a_feed_is_found_under_its_own_id(entries: list[tuple[str, str]]) -> None:
    items = "".join(
        f'<item><guid isPermaLink="false">{escape(guid)}</guid><title>{escape(title)}</title></item>'
        for guid, title in entries
    )
    feed = f"<rss version='2.0'><channel>{items}</channel></rss>"
    found = feed_child.read_feed(feed.encode(), {"content-type": "application/xml; charset=utf-8"})["items"]
    assert [item["id"] for item in found] == [guid for guid, _ in entries]


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, len(RSS)))
def test_a_damaged_feed_gives_items_or_a_problem_and_always_json(junk: bytes, at: int) -> None:
    text = RSS.format(encoding="utf-8").encode()
    answer = feed_child.answer(text[:at] + junk + text[at:], {})
    assert answer.keys() in ({"items"}, {"problem"})
    assert all(item["id"] for item in answer.get("items", []))
    json.dumps(answer)


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("source", "given_with", "pointer", "says"),
    [
        ("http.jsn", {}, "/trigger/source", "did you mean 'http.json'?"),
        ("rss", {}, "/trigger/with/url", "the key 'url' is missing"),
        ("rss", {"url": URL, "items": "x"}, "/trigger/with/items", "unknown key 'items'"),
        ("rss", {"url": "ftp://shop.example/feed"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "/etc/passwd"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "https://"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "https://shop.example:0/"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "https://shop.example:x/"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "https://me:secret@shop.example/"}, "/trigger/with/url", "no user name"),
        ("rss", {"url": f"https://shop.example/{'x' * 9000}"}, "/trigger/with/url", "such as https://"),
        ("rss", {"url": "https://shop.example/a\nb"}, "/trigger/with/url", "such as https://"),
        ("http.json", {"url": URL, "headers": {"a b": "c"}}, "/trigger/with/headers", "is not a header"),
        ("http.json", {"url": URL, "headers": {"a": "b\r\nc: d"}}, "/trigger/with/headers", "is not a header"),
        ("http.json", {"url": URL, "headers": {"Host": "b"}}, "/trigger/with/headers", "cannot be set"),
        ("http.json", {"url": URL, "items": "a..b"}, "/trigger/with/items", "dots between them"),
        ("http.json", {"url": URL, "cursor": {"path": "id"}}, "/trigger/with/cursor/parameter", "is missing"),
        ("http.json", {"url": URL, "cursor": {"parameter": ""}}, "/trigger/with/cursor/parameter", "at least 1"),
    ],
)
def test_a_with_that_is_wrong_is_refused_at_its_place(
    source: str, given_with: dict[str, Json], pointer: str, says: str
) -> None:
    trigger = PollTrigger.model_validate({"type": "poll", "source": source, "every": "10m", "with": given_with})
    (fault,) = check_trigger(trigger, SOURCES)
    assert fault.pointer == pointer
    assert says in fault.message
    assert "secret" not in fault.message


@given(st.text())
def test_a_foreign_id_becomes_a_key_that_postgres_can_index(foreign: str) -> None:
    key = short(foreign)
    assert 0 < len(key) <= MAX_ID_LENGTH
    assert "\0" not in key
    assert key == short(foreign)


@given(st.text(), st.text())
def test_keys_of_different_ids_differ(one: str, other: str) -> None:
    assert (short(one) == short(other)) == (one == other)
