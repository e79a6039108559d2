"""Parents, children, limits, answers and cancels at once, by many workers: every run ends, and nothing is left over."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import Conflict, Gone, Unavailable
from engine.sweeper import Sweeper
from tests.engine_parts import Parts, parts_for
from tests.scripted import echo

RUNS = 40
WORKERS = 6


@pytest.fixture
def parts(database_url: str) -> Iterator[Parts]:
    with parts_for(database_url) as parts:
        yield parts


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_happens_at_once_every_run_ends_and_no_place_is_kept(parts: Parts, seed: int) -> None:
    _workflows(parts)
    run_ids = [parts.start("wf_parent", input={"input": {"key": n % 3}}) for n in range(RUNS)]
    over = threading.Event()
    with ThreadPoolExecutor(WORKERS + 2) as pool:
        workers = [pool.submit(_work, parts, over) for _ in range(WORKERS)]
        people = [pool.submit(_interfere, parts, run_ids, random.Random(seed + n), over) for n in range(2)]
        try:
            _until_all_have_ended(parts)
        finally:
            over.set()
        for future in (*workers, *people):
            future.result(30)
    states = {row["status"] for row in parts.rows("SELECT DISTINCT status FROM runs")}
    assert states <= {"succeeded", "failed", "cancelled"}
    assert "succeeded" in states
    _books_agree(parts)


def _workflows(parts: Parts) -> None:
    """A parent that runs two children at once, each of which shares a limit and asks somebody."""
    parts.workflow(
        echo("work"), {"id": "ask", "wait": {"approval": {"expires": "1s"}}, "on_error": "continue"}, echo("end"),
        workflow_id="wf_child", concurrency={"key": "trigger.input.key", "limit": 2},
    )  # fmt: skip
    parts.workflow(
        {
            "id": "sub",
            "action": "workflow.run",
            "for_each": {"items": "[0, 1]", "parallel": 2},
            "with": {"workflow": "wf_child", "input": {"key": "{{ trigger.input.key }}"}},
            "on_error": "continue",
        },
        echo("end"),
        workflow_id="wf_parent",
        concurrency={"limit": 20},
    )


def _work(parts: Parts, over: threading.Event) -> None:
    """A worker: takes any message that is there."""
    executor = parts.another_worker()
    while not over.is_set():
        try:
            _, message = parts.publisher.messages.popitem()
        except KeyError:
            over.wait(0.01)
            continue
        try:
            executor.run("acme", message.run_id)
        except Unavailable:
            parts.publisher.publish([message])


def _interfere(parts: Parts, run_ids: list[str], chance: random.Random, over: threading.Event) -> None:
    """Cancels runs, parents and children alike, and answers whoever asks."""
    while not over.wait(0.02):
        live = parts.rows("SELECT id, parent_run_id, wait_reason FROM runs WHERE finished_at IS NULL ORDER BY id")
        if not live:
            continue
        row = chance.choice(live)
        try:
            if row["wait_reason"] == "approval":
                parts.resume(row["id"], approved=chance.random() < 0.5)
            elif chance.random() < 0.1 or row["id"] in run_ids[::7]:
                parts.cancel(row["id"])
        except (Conflict, Gone, Unavailable):
            pass  # it ended or was answered meanwhile, or two of us met: as a client would, try another


def _until_all_have_ended(parts: Parts) -> None:
    sweeper = Sweeper(parts.database, parts.publisher, runs=parts.runs, queued_seconds=1)
    end = time.monotonic() + 60
    while parts.rows("SELECT 1 FROM runs WHERE finished_at IS NULL LIMIT 1"):
        assert time.monotonic() < end, parts.rows(
            "SELECT id, workflow_id, status, wait_reason, wake_at, attempt, concurrency_key, parent_run_id"
            " FROM runs WHERE finished_at IS NULL"
        )
        sweeper.run_once()


def _books_agree(parts: Parts) -> None:
    twice = "SELECT run_id FROM usage WHERE kind = 'execution' AND quantity = 1 GROUP BY 1 HAVING count(*) > 1"
    assert parts.rows(twice) == [], "a run that ended is charged once"
    odd = """
        SELECT c.id FROM runs c JOIN runs p ON p.id = c.parent_run_id
        WHERE p.status = 'succeeded' AND c.finished_at > p.finished_at
    """
    assert parts.rows(odd) == [], "a parent that succeeded had waited for its children"
    assert parts.rows("SELECT 1 FROM runs WHERE wait_reason IS NOT NULL") == []
