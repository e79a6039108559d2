"""Every error that Fairlane raises on purpose, and the control words by which actions speak to the executor.

    FairlaneError                    code, status, retryable
    +-- ConfigurationError           the process may not start: one sentence for each fault
    +-- BadRequest              400  a request that cannot be understood
    +-- InvalidInput            422  faults: (pointer, message) for each place that is wrong
    |   +-- ExpressionInvalid   422  a CEL expression or template that does not compile
    +-- Unauthenticated         401
    +-- Forbidden               403
    +-- NotFound                404  also for what belongs to another tenant
    +-- Conflict                409
    +-- Gone                    410
    +-- TooLarge                413
    +-- QuotaExceeded           429  (402 where a plan must be changed first), with retry_after
    +-- Unavailable             503  a dependency is down; try again
    |   +-- StatementTimeout    503  Postgres ended a statement that took too long
    |   +-- Locked              503  somebody else holds what is wanted for too long
    |   +-- PutBack             503  a run is in line again with what it has done
    |   +-- WrittenByNewer      503  a newer Fairlane wrote it, and only one like that can read it
    +-- VaultError              500  a secret cannot be read or written
    +-- ExpressionFailed             an expression that compiled has no value for this run
    +-- ActionError                  what an action reports of the outside world
        +-- RetryLater               worth another attempt, perhaps not before `after`
        +-- Fatal                    another attempt would fail alike
    Suspend (BaseException)          the run leaves its worker and waits; no `except Exception` can eat it
    RunWorkflow (BaseException)      the step waits for a run of another workflow
    Cancelled (BaseException)        the run was cancelled or lost to another worker; stop at once

`code` is stable and part of the contract; `detail` is a sentence for a person and never holds a secret. A 5xx always
means our own fault; what a tenant did wrong is a 4xx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an input: an RFC 6901 JSON pointer to the place, and what would be right."""

    pointer: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.message}"


class FairlaneError(Exception):
    """The root. `detail` is shown to people; `code` and `status` come from the class unless given."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, code: str | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.error_code = code or self.code
        self.extra: Mapping[str, Any] = extra


class ConfigurationError(FairlaneError):
    """The environment is missing something, or holds a bad value. The detail has one sentence per variable."""

    code = "configuration"


class BadRequest(FairlaneError):
    code = "bad_request"
    status = 400


class InvalidInput(FairlaneError):
    """A document or request with one or more faults, each with its pointer."""

    code = "invalid_input"
    status = 422

    def __init__(self, faults: Iterable[Fault], *, detail: str | None = None, code: str | None = None) -> None:
        self.faults = tuple(faults)
        super().__init__(detail or "; ".join(str(fault) for fault in self.faults), code=code)


class ExpressionInvalid(InvalidInput):
    """A CEL expression or template that does not parse, type-check, or stay inside its limits."""

    code = "invalid_expression"


class Unauthenticated(FairlaneError):
    code = "unauthenticated"
    status = 401


class Forbidden(FairlaneError):
    code = "forbidden"
    status = 403


class NotFound(FairlaneError):
    code = "not_found"
    status = 404


class Conflict(FairlaneError):
    code = "conflict"
    status = 409


class Gone(FairlaneError):
    code = "gone"
    status = 410


class TooLarge(FairlaneError):
    code = "too_large"
    status = 413


class QuotaExceeded(FairlaneError):
    """A limit of the plan. `status` is 429, or 402 where waiting does not help and the plan must change."""

    code = "quota"
    status = 429
    retryable = True

    def __init__(
        self, detail: str, *, code: str, retry_after: timedelta | None = None, payment_required: bool = False
    ) -> None:
        super().__init__(detail, code=code)
        self.retry_after = retry_after
        self.http_status = 402 if payment_required else 429


class Unavailable(FairlaneError):
    """Postgres, Redis or the expression evaluator does not answer. Nothing was half-done; the caller may repeat.

    `cause` is what the server or its driver said. It stands in the detail, for logs and operators; it may name hosts
    and files of ours, so callers of the API are told the detail without it, `told`.
    """

    code = "unavailable"
    status = 503
    retryable = True

    def __init__(self, detail: str, *, cause: str | None = None) -> None:
        super().__init__(detail if cause is None else f"{detail} ({cause}); try again.")
        self.told = detail if cause is None else f"{detail}; try again."


class StatementTimeout(Unavailable):
    """That is heavy load; again and again, and with a large value to store, it is the statement and no outage."""


class Locked(Unavailable):
    """A wait for a lock was given up: what somebody else holds is of these rows, and no outage."""


class PutBack(Unavailable):
    """A worker let a run go because a part of ours does not answer; Postgres has it in line, and the sweeper sees that.

    Its message is used up: handed back, it would be a second one.
    """


class WrittenByNewer(Unavailable):
    """What a newer Fairlane stored, while an older process is still there. It is left for one that can read it."""


def is_outage(error: Exception) -> bool:
    """Whether the next one would fare no better: a server is away, which is no matter of one statement or its rows."""
    return isinstance(error, Unavailable) and not isinstance(error, StatementTimeout | Locked)


class VaultError(FairlaneError):
    """A secret that does not decrypt: moved, altered, or written under a key that is not configured."""

    code = "credential_unreadable"


class ExpressionFailed(FairlaneError):
    """An expression without a value in this run: a missing path, a wrong type, or a limit that it passed."""

    code = "expression_failed"
    status = 422


class ActionError(FairlaneError):
    """What an action says of the outside world; `data` is stored with the step after redaction."""

    code = "action_failed"

    def __init__(self, detail: str, *, code: str | None = None, data: Mapping[str, Any] | None = None) -> None:
        super().__init__(detail, code=code)
        self.data: Mapping[str, Any] = data or {}


class RetryLater(ActionError):
    """The same call may succeed later, not before `after` has passed where the other side named a time."""

    code = "action_retryable"
    retryable = True

    def __init__(
        self,
        detail: str,
        *,
        after: timedelta | None = None,
        code: str | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail, code=code, data=data)
        self.after = after


class Fatal(ActionError):
    """The same call would fail alike: wrong input, refused credential, forbidden target."""

    code = "action_fatal"


class Suspend(BaseException):
    """Leave the worker; the run goes on at `wake_at`, or when somebody resumes it if that is None."""

    def __init__(self, reason: str, *, wake_at: datetime | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wake_at = wake_at


class RunWorkflow(BaseException):
    """Start a run of that workflow and wait for its end, without a worker; what comes of it is the step's result."""

    def __init__(self, workflow_id: str, given: Any) -> None:
        super().__init__(workflow_id)
        self.workflow_id = workflow_id
        self.input = given
        """The JSON value that the run gets as ``trigger.input``."""


class Cancelled(BaseException):
    """The run is no longer this worker's: cancelled by somebody, or taken over after its lease ran out."""
