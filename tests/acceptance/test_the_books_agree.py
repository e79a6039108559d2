"""The short form of `bench.ledger`: ten organizations, some hundred runs, and a worker that is killed."""

from __future__ import annotations

import pytest

from bench.ledger import run
from bench.ledger_books import ENDED, EXECUTIONS, HELD, REJECTED, SECONDS
from bench.ledger_judge import Outcome
from bench.ledger_month import Plan

RUNS = 300


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    plan = Plan(runs=RUNS, tenants=10, seconds=60, lease=1.5, kills=(1, 3), most_kills=1, rounds=1, api_kills=0)
    return run(plan, tmp_path_factory.mktemp("ledger"))


def test_ledger_counters_pages_metrics_and_invoices_are_what_the_runs_table_says(outcome: Outcome) -> None:
    assert outcome.broken == []
    names = {book.name for book in outcome.books}
    assert names >= {"runs", "clients", "ledger", "by month", "counters", "usage page", "quotas", "invoice", "metrics"}
    totals = {book.name: book.total(EXECUTIONS) for book in outcome.books}
    assert totals["runs"] == totals["ledger"] == totals["invoice"]


def test_the_load_had_all_that_makes_books_differ(outcome: Outcome) -> None:
    facts = outcome.facts
    assert facts["runs"] >= RUNS
    assert min(facts[what] for what in ("worker_kills", "cancels", "replays", "bulk_replays", "late")) >= 1
    assert min(facts["states"][state] for state in ("succeeded", "failed", "cancelled", "held")) >= 1
    ledger = next(book for book in outcome.books if book.name == "ledger")
    assert all(ledger.total(measure) for measure in (HELD, REJECTED, SECONDS))
    assert next(book for book in outcome.books if book.name == "metrics").total(ENDED)


def test_one_row_that_is_missing_in_the_ledger_is_found(outcome: Outcome) -> None:
    found = outcome.facts["self_test"]
    assert any("executions: runs" in line for line in found)
    assert any("admitted 1 times, in the ledger 0 times" in line for line in found)
