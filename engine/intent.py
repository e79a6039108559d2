"""What is done before an action is called: its credential is decrypted, and it is stored that its effect may happen."""

from __future__ import annotations

from dataclasses import replace

from engine.db import Row, TenantSession
from engine.errors import Cancelled, Fatal, VaultError
from engine.execution import Execution, StepResult
from engine.outcomes import failed
from engine.patience import patiently
from engine.ports import Action
from engine.repository import credentials, runs
from engine.states import StepState
from engine.tools import Tools
from engine.vault import Vault


def record_intent(execution: Execution, tools: Tools) -> Execution:
    """Decrypt the credential and store that the effect is about to be tried, in one transaction.

    An action without effects and without a credential needs neither.
    """
    action = tools.actions[str(execution.step.action)]
    if not action.has_effects and action.service is None:
        return execution
    lines = execution.run.journal.take() if action.has_effects else []
    try:
        return patiently(execution.run.hold, lambda: _prepare(execution, action, tools, lines))
    except (Fatal, VaultError) as error:
        execution.run.journal.put_back(lines)
        return failed(execution, error.error_code, error.detail)


def renew_credential(execution: Execution, tools: Tools) -> Execution:
    """As it is stored now, for the attempt that `execution` says: it may have been rotated, or deleted, since the last.

    Nothing is written: the intent of the step covers all of its attempts. Raises Fatal and VaultError.
    """
    if execution.credential is None:
        return execution
    action = tools.actions[str(execution.step.action)]

    def read() -> Execution:
        with tools.database.tenant(execution.run.tenant_id) as session:
            return _unlock(execution, action, session, tools.vault)

    return patiently(execution.run.hold, read)


def _prepare(execution: Execution, action: Action, tools: Tools, lines: list[Row]) -> Execution:
    with tools.database.tenant(execution.run.tenant_id) as session:
        execution = _unlock(execution, action, session, tools.vault)
        if action.has_effects:
            _store_intent(execution, session, lines)
    return execution


def _unlock(execution: Execution, action: Action, session: TenantSession, vault: Vault) -> Execution:
    name = execution.step.credential
    if action.service is None or (name is None and not action.credential_required):
        return execution
    rows = credentials.for_step(
        session,
        name=name,
        service=action.service,
        run_id=execution.run.run_id,
        step_id=execution.step.id,
        attempt=execution.attempt,
    )
    row = _the_one(rows, action=action, name=name)
    secret = vault.open(session, row)
    return replace(execution, credential=secret, redact=execution.redact.also(secret.get_secret_value()))


def _the_one(rows: list[Row], *, action: Action, name: str | None) -> Row:
    wanted = f"named {name!r}" if name is not None else f"of the service {action.service!r}"
    if not rows:
        raise Fatal(f"There is no credential {wanted}; add one or name another.", code="credential_missing")
    if len(rows) > 1:
        raise Fatal(
            f"There are several credentials {wanted}; name one of them in the step.", code="credential_ambiguous"
        )
    if rows[0]["service"] != action.service:
        raise Fatal(
            f"The credential {name!r} is for {rows[0]['service']}, but {action.name} needs one for {action.service}.",
            code="credential_of_another_service",
        )
    return rows[0]


def _store_intent(execution: Execution, session: TenantSession, lines: list[Row]) -> None:
    intent = StepResult(
        execution.step.id,
        StepState.RUNNING,
        attempt=execution.attempt,
        item=execution.item,
        started_at=execution.started_at,
    )
    run = execution.run
    if not runs.save_progress(session, run.run_id, attempt=run.attempt, steps=[intent.row()], lines=lines, begins=True):
        run.hold.lose()
        raise Cancelled("the run is no longer this worker's")
