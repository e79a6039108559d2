"""The page about triggers: its examples are valid, its table of clock changes is what happens, its code runs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

import actions
import triggers
from engine.definition import parse
from engine.ports import HttpReply
from tests.trigger_parts import ECHO
from triggers import KINDS, SOURCES, pollers
from triggers.cron import Cron
from triggers.poll import LEASE
from triggers.sources import feed_child, rss

PAGE = (Path(__file__).parents[2] / "docs" / "triggers.md").read_text("utf-8")
EXAMPLES = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
CLOCK_ROWS = re.findall(
    r"^\| `([^`]+ [^`]+)` \| (.+?) \| (.+?) \|$", PAGE.split("When the clock changes")[1], re.MULTILINE
)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_can_be_saved(example: str) -> None:
    document = {"name": "W", **yaml.safe_load(example), "steps": [ECHO]}
    workflow = parse(document, actions=actions.build(), sources=SOURCES)
    KINDS.row("wf_1", workflow.trigger, datetime.now(UTC))


def test_there_is_an_example_of_every_kind_and_every_source() -> None:
    shown = [yaml.safe_load(example)["trigger"] for example in EXAMPLES]
    assert {trigger["type"] for trigger in shown} == set(KINDS)
    assert {trigger["source"] for trigger in shown if "source" in trigger} == set(SOURCES)


@pytest.mark.parametrize(("expression", "spring", "autumn"), CLOCK_ROWS)
def test_the_table_of_clock_changes_is_what_happens(expression: str, spring: str, autumn: str) -> None:
    rhythm = Cron(expression, "Europe/Berlin")
    assert _fires(rhythm, datetime(2026, 3, 29, tzinfo=BERLIN)) == spring
    assert _fires(rhythm, datetime(2026, 10, 25, tzinfo=BERLIN)) == autumn


def _fires(rhythm: Cron, midnight: datetime) -> str:
    moment, until = midnight.astimezone(UTC) - timedelta(seconds=1), midnight.replace(hour=4).astimezone(UTC)
    found = []
    while (moment := rhythm.first(moment) or until + LEASE) <= until:
        found.append(f"{moment.astimezone(BERLIN):%H:%M %Z}")
    return ", ".join(found) or "none"


def test_the_clock_table_was_found() -> None:
    assert len(CLOCK_ROWS) == 6


@pytest.mark.parametrize(
    "figure",
    [
        f"More than {pollers.FLOOD} new items",
        f"After {pollers.MAX_FAILURES}\nfailures in a row",
        f"at most {pollers.LONGEST_BACKOFF // timedelta(hours=1)} hours",
        f"has not listed them for {pollers.REMEMBERED.days} days",
        f"At most {pollers.MAX_ITEMS:,} items in one answer, and {pollers.MAX_ITEM_LENGTH >> 20} MiB",
        f"of at most {rss.MAX_FEED_BYTES >> 20} MiB",
        f"cut at {feed_child.MAX_TEXT:,} characters",
        f"with {rss.CPU_SECONDS} s of CPU, {feed_child.MEMORY_BYTES >> 20} MiB of memory",
        f"falls due again after {LEASE // timedelta(minutes=1)} minutes",
    ],
)
def test_the_figures_are_those_of_the_code(figure: str) -> None:
    assert figure in PAGE


def test_the_example_of_a_source_works() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(code, namespace)

    class Client:
        def fetch(self, url: str, *, headers: Any = None, timeout: float = 30.0) -> HttpReply:
            return HttpReply(200, {}, b"1.0\n1.1\n")

    source = namespace["Releases"]()
    parameters = source.input_model(url="https://acme.example/releases.txt")
    first = source.poll(parameters, None, Client())
    assert [item.id for item in first.items] == ["1.0", "1.1"]
    assert source.poll(parameters, first.cursor, Client()).items == []


def test_the_public_surface_is_small() -> None:
    assert triggers.__all__ == ["KINDS", "SOURCES", "Delivery", "Poller", "Receiver", "Scheduler", "fire"]
    assert all(hasattr(triggers, name) for name in triggers.__all__)
