"""Answers to runs that wait, and the signed links by which they may be given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answers import Answer, Done, Refused, answered, moment, the_one
from engine.errors import Conflict, ExpressionFailed, Gone, NotFound
from engine.resume_links import ResumeLink, ResumeLinks

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
YES = Answer(approved=True, by="user_ada", data={"n": 1})


def waiting(step_id: str = "ask", item: str = "", *, expired: bool = False) -> dict[str, Any]:
    return {"step_id": step_id, "item": item, "expired": expired}


def test_yes_no_and_silence() -> None:
    assert answered(YES.signal(NOON)) == Done(
        {"approved": True, "by": "user_ada", "at": "2026-01-01T12:00:00+00:00", "data": {"n": 1}}
    )
    no = answered(Answer(approved=False, by="link").signal(NOON))
    assert isinstance(no, Refused)
    assert no.code == "approval_refused"
    silence = answered(None)
    assert isinstance(silence, Refused)
    assert silence.code == "approval_expired"


@pytest.mark.parametrize(
    ("rows", "named", "found"),
    [
        ([waiting("a")], {}, "a"),
        ([waiting("a"), waiting("b")], {"step_id": "b"}, "b"),
        ([waiting("a", expired=True), waiting("b")], {}, "b"),
        ([waiting("a", "0"), waiting("a", "1")], {"step_id": "a", "item": "1"}, "a"),
    ],
)
def test_the_step_that_is_meant_is_found(rows: list[dict[str, Any]], named: dict[str, str], found: str) -> None:
    assert the_one(rows, Answer(approved=True, by="x", **named))["step_id"] == found


@pytest.mark.parametrize(
    ("rows", "named", "error", "code"),
    [
        ([], {}, Conflict, "run_not_waiting"),
        ([waiting("a")], {"step_id": "b"}, Conflict, "run_not_waiting"),
        ([waiting("a"), waiting("b")], {}, Conflict, "answer_ambiguous"),
        ([waiting("a", "0"), waiting("a", "1")], {"step_id": "a"}, Conflict, "answer_ambiguous"),
        ([waiting("a", expired=True)], {}, Gone, "approval_expired"),
    ],
)
def test_what_is_not_meant_is_refused(
    rows: list[dict[str, Any]], named: dict[str, str], error: type[Conflict], code: str
) -> None:
    with pytest.raises(error) as refused:
        the_one(rows, Answer(approved=True, by="x", **named))
    assert refused.value.error_code == code


def test_a_moment_is_text_in_rfc_3339() -> None:
    assert moment("2026-01-01T13:00:00+01:00", "x") == NOON
    assert moment("2026-01-01T12:00:00Z", "x") == NOON
    assert moment("2026-01-01T12:00:00", "x") == NOON


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.lists(st.integers()))
def test_what_is_no_text_is_no_moment(value: Any) -> None:
    with pytest.raises(ExpressionFailed, match=r"trigger\.x: want a timestamp"):
        moment(value, "trigger.x")


@given(st.from_regex(r"[a-z ]{0,20}", fullmatch=True))
def test_text_that_is_no_moment_is_told_so(text: str) -> None:
    with pytest.raises(ExpressionFailed, match=r"trigger\.x: want a timestamp"):
        moment(text, "trigger.x")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def links(clock: Clock) -> ResumeLinks:
    return ResumeLinks("s" * 40, "https://x.example/", clock=clock)


def test_a_link_names_its_run_until_it_expires(links: ResumeLinks, clock: Clock) -> None:
    url = links.url("tenant_a", "run_1")
    assert url.startswith("https://x.example/api/runs/run_1/resume?token=")
    token = url.partition("token=")[2]
    assert links.read(token) == ResumeLink("tenant_a", "run_1")
    clock.now += timedelta(days=7).total_seconds() + 1
    with pytest.raises(Gone) as late:
        links.read(token)
    assert late.value.error_code == "link_expired"


def test_a_link_of_another_installation_is_not_ours(links: ResumeLinks) -> None:
    other = ResumeLinks("t" * 40, "https://x.example")
    with pytest.raises(NotFound):
        links.read(other.token("tenant_a", "run_1"))


@given(st.data())
def test_no_changed_token_is_read_as_anything_else(data: st.DataObject) -> None:
    links = ResumeLinks("s" * 40, "https://x.example")
    token = links.token("tenant_a", "run_1")
    position = data.draw(st.integers(0, len(token) - 1))
    changed = token[:position] + data.draw(st.sampled_from("ABCabc019-_")) + token[position + 1 :]
    try:
        assert links.read(changed) == ResumeLink("tenant_a", "run_1")
    except NotFound:
        assert changed != token


@given(st.text(max_size=200))
def test_no_text_is_an_error(text: str) -> None:
    with pytest.raises(NotFound):
        ResumeLinks("s" * 40, "https://x.example").read(text)
