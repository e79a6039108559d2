"""What an expression costs a worker: the confined evaluator beside CEL inside the process, which is not safe.

Run: python bench/expressions.py. Prints microseconds per evaluation, the best of several rounds, since the machine is
shared; the difference is the price of a round trip to another process, paid for memory limits and a kill switch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from sys import path

path.insert(0, str(Path(__file__).parents[1]))

from engine.cel_child import Evaluation
from engine.expressions import Evaluator

ROUNDS = 15
CALLS = 1_000
SMALL = {
    "trigger": {"body": {"amount": 150, "customer": {"name": "Ann", "tags": ["a", "b"]}}},
    "steps": {"fetch": {"output": {"status": 200}, "status": "succeeded"}},
}
LARGE = {**SMALL, "trigger": {"body": {"amount": 150, "rows": [{"id": n, "name": f"row {n}"} for n in range(1000)]}}}
CONDITION = "trigger.body.amount > 100 && steps.fetch.output.status == 200"
TEMPLATE = {"text": "{{ trigger.body.amount }} from {{ steps.fetch.status }}", "n": "{{ trigger.body.amount }}"}


def best(call: Callable[[], object]) -> float:
    """Microseconds of one call in the best round."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(CALLS):
            call()
        rounds.append((time.perf_counter() - began) / CALLS * 1e6)
    return min(rounds)


def main() -> None:
    inside = Evaluation()
    with Evaluator(children=1) as evaluator:
        rows = [
            ("condition, in process (unsafe)", best(lambda: inside.evaluate(CONDITION, SMALL))),
            ("condition", best(lambda: evaluator.condition(CONDITION, SMALL))),
            ("condition, beside 1,000 rows", best(lambda: evaluator.condition(CONDITION, LARGE))),
            ("render, three templates", best(lambda: evaluator.render(TEMPLATE, SMALL))),
            ("render, no template", best(lambda: evaluator.render({"text": "plain", "n": 1}, SMALL))),
        ]
    for name, microseconds in rows:
        print(f"{name:34} {microseconds:8.1f} us")
    print(f"RESULT expressions condition_us={rows[1][1]:.1f} ratio={rows[1][1] / rows[0][1]:.1f}")


if __name__ == "__main__":
    main()
