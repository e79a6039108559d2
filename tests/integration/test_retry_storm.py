"""F36: a service was away and is back. Runs that tried again all the while neither flood it nor are forgotten.

Time passes by the clock of the database, ten minutes at a time; the runs, their parking and waking are real. What a
thousand runs do in an hour is worked out in `tests/unit/test_retry.py` from the same decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import RetryLater
from engine.ports import Json, StepContext
from tests.engine_parts import Parts, parts_for
from tests.scripted import call, scripted

RUNS = 100
OUTAGE = 30
"""Times ten minutes."""


@pytest.fixture
def script() -> SimpleNamespace:
    return scripted()


@pytest.fixture
def parts(database_url: str, script: SimpleNamespace) -> Iterator[Parts]:
    with parts_for(database_url, script=script.action) as parts:
        yield parts


def test_after_an_outage_calls_come_spread_over_time_and_every_run_ends(parts: Parts, script: SimpleNamespace) -> None:
    calls = [0]

    def body(_context: StepContext, _parameters: Any) -> Json:
        calls[-1] += 1
        if len(calls) <= OUTAGE:
            raise RetryLater("away")
        return "done"

    script.body = body
    workflow = parts.workflow(call(retry={"attempts": 20, "initial": "100m", "max": "200m"}))
    for _ in range(RUNS):
        parts.start(workflow)
    for _ in range(OUTAGE + 21):
        parts.sweep_and_run()
        parts.let_pass(minutes=10)
        calls.append(0)
    states = {row["status"]: row["n"] for row in parts.rows("SELECT status, count(*) AS n FROM runs GROUP BY 1")}
    assert states == {"succeeded": RUNS}
    assert RUNS <= calls[0] <= RUNS * 1.05, "all met the outage together; who drew a few seconds tried again at once"
    assert max(calls[1:]) <= RUNS * 0.3, "and never again together: a tenth of them each time at first, then less"
    assert sum(calls[OUTAGE:]) == RUNS, "each is called once when the service is back"
    assert max(calls[OUTAGE:]) <= RUNS * 0.3
