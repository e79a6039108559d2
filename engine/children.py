"""Runs that a run starts and waits for: the action `workflow.run`.

The child is a run of its own, in the same tenant's lane; its parent waits without a worker and is woken in the
transaction that ends the child. The child is found by the step's idempotency key, so a step that is tried again after a
crash waits for the same child instead of starting another. Cancelling the parent cancels what it waits for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.db import Row
from engine.errors import Cancelled, Fatal, RunWorkflow
from engine.execution import MAX_DEPTH, WORKFLOW, Execution
from engine.outcomes import failed, parked, with_result
from engine.patience import patiently
from engine.repository import relatives
from engine.runs import Start
from engine.states import RunState, StepState
from engine.tools import Tools


def start_child(execution: Execution, tools: Tools, wish: RunWorkflow) -> Row:
    """The child that the step waits for: new, or that of an earlier attempt. Raises what `Runs.start` raises.

    Nothing is started for a run that was cancelled meanwhile: its row is held until the child is stored.
    """
    run = execution.run
    if run.depth >= MAX_DEPTH:
        raise Fatal(f"{MAX_DEPTH} runs led to this one, each started by another; no more follow.", code="too_deep")
    request = Start(
        workflow_id=wish.workflow_id,
        trigger="workflow",
        input={"input": wish.input, "parent": {"run_id": run.run_id, "step": execution.step.id}},
        idempotency_key=execution.idempotency_key,
        priority=run.priority,
        parent_run_id=run.run_id,
        depth=run.depth + 1,
    )

    def start() -> Row:
        with tools.database.tenant(run.tenant_id) as session:
            if not relatives.still_holds(session, run.run_id, run.attempt):
                run.hold.lose()
                raise Cancelled("the run is no longer this worker's")
            started = tools.runs.start(session, request)
            return relatives.child(session, started.run["id"])

    child = patiently(run.hold, start)
    if child["parent_run_id"] != run.run_id:
        raise Fatal("Another run has this step's idempotency key.", code="idempotency_key_taken")
    return child


def with_child(
    execution: Execution, child: Mapping[str, Any], *, calls: int = 0, since: float | None = None
) -> Execution:
    """The step by its child: parked while that is under way, else what came of it."""
    state = RunState(child["status"])
    if not state.is_terminal:
        execution.log("info", f"Waits for the run {child['id']}.")
        return parked(execution, WORKFLOW, None, output={"run_id": child["id"]}, calls=calls, since=since)
    if state is RunState.SUCCEEDED:
        output = {"run_id": child["id"], "output": child["output"]}
        execution.log("info", f"The run {child['id']} succeeded.")
        return with_result(execution, StepState.SUCCEEDED, output=output, calls=calls, since=since)
    data = {"run_id": child["id"], "error": child["error"]}
    message = (child["error"] or {}).get("message", "")
    sentence = f"The run {child['id']} {'failed: ' + message if state is RunState.FAILED else 'was cancelled.'}"
    return failed(execution, f"workflow_{state.value}", sentence, data=data, calls=calls, since=since)
