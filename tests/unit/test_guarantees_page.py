"""docs/guarantees.md names only tests and faults that exist, and leaves no fault of the catalogue out."""

from __future__ import annotations

import re
from pathlib import Path

from bench.chaos_faults import FAULTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")


def rows() -> dict[str, str]:
    """The rows of the catalogue by their number."""
    return {row[1]: row[0] for row in re.finditer(r"^\| (F\d+) \|.*$", PAGE, re.MULTILINE)}


def test_every_fault_of_the_catalogue_has_one_row() -> None:
    assert re.findall(r"^\| (F\d+) \|", PAGE, re.MULTILINE) == [f"F{n}" for n in range(1, 37)]


def test_every_invariant_says_how_it_is_judged() -> None:
    assert re.findall(r"^- \*\*(I\d)\*\*", PAGE, re.MULTILINE) == [f"I{n}" for n in range(1, 9)]


def test_every_test_that_is_named_exists() -> None:
    there = {name for path in (ROOT / "tests").rglob("test_*.py") for name in _tests(path)}
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 40
    assert named - there == set()


def _tests(path: Path) -> list[str]:
    return re.findall(r"^\s*def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)


def test_every_fault_of_chaos_is_named_and_no_other() -> None:
    named = {name for row in rows().values() for name in re.findall(r"\*\*(.+?)\*\*", row)}
    assert named == FAULTS.keys()


def test_what_no_test_and_no_chaos_shows_says_that_it_is_not_covered() -> None:
    bare = [number for number, row in rows().items() if "`test_" not in row and "**" not in row]
    assert [number for number in bare if "Not covered" not in rows()[number]] == []
