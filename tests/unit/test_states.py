"""The states of a run and of a step are one table, and the page about them says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.states import RUN_EDGES, STEP_EDGES, RunState, StepState, sources

PAGE = (Path(__file__).parents[2] / "docs" / "states.md").read_text("utf-8")
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", re.MULTILINE)


def _page_rows(heading: str) -> dict[str, tuple[str, set[str]]]:
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {name: (meaning, set(re.findall(r"`(\w+)`", after))) for name, meaning, after in ROW.findall(section)}


def test_the_page_has_every_state_of_a_run_with_its_meaning_and_edges() -> None:
    assert _page_rows("Runs") == {s.value: (s.meaning, {t.value for t in RUN_EDGES[s]}) for s in RunState}


def test_the_page_has_every_state_of_a_step_with_its_meaning_and_edges() -> None:
    assert _page_rows("Steps") == {s.value: (s.meaning, {t.value for t in STEP_EDGES[s]}) for s in StepState}


@given(st.lists(st.sampled_from(list(RunState)), max_size=20))
def test_no_walk_over_the_edges_leaves_a_terminal_state(wishes: list[RunState]) -> None:
    state = RunState.QUEUED
    for wish in wishes:
        before = state
        state = wish if wish in RUN_EDGES[state] else state
        assert not before.is_terminal or state is before


@pytest.mark.parametrize("state", list(RunState))
def test_every_state_but_the_first_two_can_be_reached(state: RunState) -> None:
    assert sources(state) or state is RunState.HELD


@pytest.mark.parametrize("state", [s for s in RunState if not s.is_terminal])
def test_every_unfinished_run_can_be_cancelled(state: RunState) -> None:
    assert RunState.CANCELLED in RUN_EDGES[state]
