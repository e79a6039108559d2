"""The plans that a personal organization may begin on, and what each admits.

They are those that the migrations seed, the narrowest first: the check before an adoption has no table of plans to look
at, and an import makes the plans of its database anew.
"""

from __future__ import annotations

from engine.errors import BadRequest

FREE = "free"
ADMITTED_A_MONTH: dict[str, int | None] = {FREE: 10_000, "team": 250_000, "enterprise": None}
"""Runs; None is no limit."""


def require_known(name: str) -> None:
    """Raises BadRequest ``unknown_plan`` for a plan that there will not be."""
    if name not in ADMITTED_A_MONTH:
        raise BadRequest(
            f"There is no plan {name!r}; there will be {', '.join(ADMITTED_A_MONTH)}.", code="unknown_plan"
        )


def said_of(plan: str, runs: int) -> str | None:
    """What to say of schedules that start so many runs a month; None when the plan admits them."""
    if _admits(plan, runs):
        return None
    wider = next(name for name in ADMITTED_A_MONTH if _admits(name, runs))
    limit = ADMITTED_A_MONTH[wider]
    return (
        f"its schedules start about {runs:,} runs a month, and the plan {plan} admits {ADMITTED_A_MONTH[plan]:,};"
        f" what comes over that is held. --plan {wider} admits {'any number' if limit is None else f'{limit:,}'}"
    )


def _admits(plan: str, runs: int) -> bool:
    limit = ADMITTED_A_MONTH[plan]
    return limit is None or runs <= limit
