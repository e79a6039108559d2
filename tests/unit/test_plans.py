"""Limits as people write them: what is taken, and what a refusal says."""

from __future__ import annotations

import pytest

from engine.errors import InvalidInput
from engine.plans import NAMES, Limits, parse_limit


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("weight", "2", 2.0),
        ("weight", "0.5", 0.5),
        ("max_executions_per_month", "100", 100),
        ("max_executions_per_month", "0", 0),
        ("max_executions_per_month", "unlimited", None),
        ("max_concurrent_runs", "None", None),
        ("log_retention_days", "365", 365),
    ],
)
def test_a_limit_is_read_as_it_is_written(name: str, text: str, value: float | None) -> None:
    assert parse_limit(name, text) == value


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "max_concurrent_runs",
            "many",
            "max_concurrent_runs cannot be 'many': want a whole number from 1 to 1,000,000",
        ),
        ("max_concurrent_runs", "0", "want a whole number from 1 to 1,000,000 (runs at the same time), or unlimited."),
        ("max_runs_per_minute", "1.5", "want a whole number from 1"),
        ("max_workflows", "-1", "want a whole number from 0"),
        ("max_workflows", "2000000000", "to 1,000,000,000"),
        ("weight", "0", "weight cannot be '0': want a number from 0.01 to 1,000"),
        ("weight", "nan", "want a number from 0.01"),
        ("weight", "inf", "want a number from 0.01"),
        ("weight", "", "want a number from 0.01"),
    ],
)
def test_a_refusal_names_the_limit_the_fault_and_what_would_be_right(name: str, text: str, sentence: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_limit(name, text)
    assert sentence in refusal.value.detail
    assert refusal.value.faults[0].pointer == f"/{name}"


def test_a_weight_is_never_unlimited() -> None:
    with pytest.raises(InvalidInput, match="weight cannot be 'unlimited'") as refusal:
        parse_limit("weight", "unlimited")
    assert "or unlimited" not in refusal.value.detail


def test_an_unknown_limit_is_answered_with_the_one_that_was_meant() -> None:
    with pytest.raises(InvalidInput, match=r"Did you mean max_executions_per_month\? The limits are weight,"):
        parse_limit("max_execution_per_month", "1")
    with pytest.raises(InvalidInput, match=r"Did you mean max_executions_per_month\?"):
        parse_limit("max_execs", "1")
    with pytest.raises(InvalidInput, match=r"There is no limit 'colour'\. The limits are"):
        parse_limit("colour", "1")


def test_the_limits_are_those_of_the_design_and_each_says_its_unit() -> None:
    assert set(NAMES) == {
        "weight", "max_workflows", "max_executions_per_month", "max_concurrent_runs", "max_runs_per_minute",
        "max_queued_runs", "max_members", "max_credentials", "max_run_seconds", "min_poll_interval",
        "max_payload_bytes", "log_retention_days",
    }  # fmt: skip
    assert all(field.description for field in Limits.model_fields.values())


def test_what_is_not_said_is_unlimited_and_of_weight_one() -> None:
    assert Limits().model_dump() == {name: 1.0 if name == "weight" else None for name in NAMES}
