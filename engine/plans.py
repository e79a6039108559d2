"""Plans and limits: what an organization may use, what differs for one of them, and whether its lane runs at all.

A tenant's limits are those of its plan, overlaid by its own. What concerns its lane in the fair queue (weight, cap,
rate, pause) acts on what waits there already: every change draws the next version and, once it is durable, tells the
lanes; a lane never goes back to an older version. While Redis does not answer the change stands in Postgres all the
same: each message carries its lane's configuration, so a lane learns of it with the next one, and so does a Redis that
lost its data. `Plans.tell` tells lanes again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import structlog
from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine import audit
from engine.audit import Actor
from engine.db import Database, Row, SystemSession
from engine.errors import Conflict, Fault, InvalidInput, NotFound, Unavailable
from engine.ports import Lane
from engine.repository import plans as stored

log = structlog.get_logger(__name__)

MOST = 1_000_000_000
MOST_IN_LANE = 1_000_000
UNLIMITED: Final = ("unlimited", "none")
LIKE: Final = 0.6
"""How alike two names are of which one may be meant for the other."""
DEFAULT: Final = "default"
"""Instead of a value: what the plan says."""
LONGEST_PLAN_NAME: Final = 50
PLAN_NAME: Final = re.compile(rf"[a-z0-9_-]{{1,{LONGEST_PLAN_NAME}}}")
"""What a new plan may be named; those that have another name keep it."""
_PLAN_NAME_WANTED: Final = f"1 to {LONGEST_PLAN_NAME} lower-case letters a to z, digits, - and _"
POLICIES: Final = ("hold", "reject")
"""What becomes of a run over the monthly limit; the first unless said otherwise."""
OPERATOR: Final = Actor("operator")
BATCH = 500
"""Tenants that are read, and lanes that are told, at once."""


class Limits(BaseModel):
    """Every limit, with its unit; None is unlimited. What a plan does not say has the default."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weight: float = Field(
        default=1, ge=0.01, le=1000, description="share of the workers: worker-seconds relative to other tenants"
    )
    max_workflows: int | None = Field(default=None, ge=0, le=MOST, description="workflows")
    max_executions_per_month: int | None = Field(default=None, ge=0, le=MOST, description="runs per calendar month")
    max_concurrent_runs: int | None = Field(default=None, ge=1, le=MOST_IN_LANE, description="runs at the same time")
    max_runs_per_minute: int | None = Field(default=None, ge=1, le=MOST_IN_LANE, description="runs begun per minute")
    max_queued_runs: int | None = Field(default=None, ge=0, le=MOST, description="runs that wait for a worker")
    max_members: int | None = Field(default=None, ge=1, le=MOST, description="people in the organization")
    max_credentials: int | None = Field(default=None, ge=0, le=MOST, description="stored credentials")
    max_run_seconds: int | None = Field(default=None, ge=1, le=MOST, description="seconds that one run may take")
    min_poll_interval: int | None = Field(default=None, ge=1, le=MOST, description="least seconds between two polls")
    max_payload_bytes: int | None = Field(
        default=None, ge=1024, le=MOST, description="bytes of what a run is given, and of what a step answers"
    )
    log_retention_days: int | None = Field(default=None, ge=1, le=MOST, description="days that logs are kept")


NAMES = tuple(Limits.model_fields)


def require_limit(name: str) -> None:
    """Raises InvalidInput when there is no such limit."""
    if name not in Limits.model_fields:
        close = _closest(name)
        hint = f" Did you mean {close}?" if close else ""
        raise _refusal(name, f"There is no limit {name!r}.{hint} The limits are {', '.join(NAMES)}.")


def parse_limit(name: str, text: str) -> float | int | None:
    """The value of a limit as a person writes it, such as ``100`` or ``unlimited``. Raises InvalidInput."""
    require_limit(name)
    value = None if text.lower() in UNLIMITED else text
    try:
        limits = Limits.model_validate({name: value})
    except ValidationError:
        raise _refusal(name, f"{name} cannot be {text!r}: want {_wanted(name)}.") from None
    parsed: float | int | None = getattr(limits, name)
    return parsed


def _closest(word: str) -> str | None:
    """The limit that was meant; many a word is only the beginning of one, such as max_execs."""
    likeness = {
        name: max(difflib.SequenceMatcher(None, word, part).ratio() for part in (name, name[: len(word)]))
        for name in NAMES
    }
    best = max(NAMES, key=lambda name: likeness[name])
    return best if likeness[best] >= LIKE else None


def _short(name: str) -> str:
    return repr(name if len(name) <= LONGEST_PLAN_NAME else f"{name[:LONGEST_PLAN_NAME]}...")


def _refusal(name: str, sentence: str) -> InvalidInput:
    return InvalidInput([Fault(f"/{name}", sentence)], detail=sentence)


def _wanted(name: str) -> str:
    field = Limits.model_fields[name]
    least = next(m.ge for m in field.metadata if isinstance(m, Ge))
    most = next(m.le for m in field.metadata if isinstance(m, Le))
    number = "a number" if field.annotation is float else "a whole number"
    unlimited = "" if field.default is not None else f", or {UNLIMITED[0]}"
    return f"{number} from {least:,} to {most:,} ({field.description}){unlimited}"


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """An organization and what it may use."""

    tenant: Row
    """id, name, plan, status, created_at."""
    limits: Limits
    """What holds: the plan overlaid by the tenant's own."""
    overrides: Mapping[str, float | int | None]
    paused: bool
    """Whether an operator paused its lane; that of a suspended tenant rests besides."""


def of_tenant(session: SystemSession, tenant_id: str) -> TenantLimits:
    """Raises NotFound, also for a deleted organization."""
    row = stored.of_tenant(session, tenant_id)
    if row is None:
        raise _no_tenant(tenant_id)
    own, base = row.pop("overrides"), row.pop("plan_limits")
    overrides = {name: own[name] for name in NAMES if name in own}
    return TenantLimits(row, Limits.model_validate(base | overrides), overrides, paused=bool(own.get("paused")))


def listed(session: SystemSession) -> list[Row]:
    """Every plan: name, limits (all of them), and how many organizations have it."""
    return [_whole(row) for row in stored.listed(session)]


def get(session: SystemSession, name: str) -> Row:
    """One plan, like those of `listed`. Raises NotFound."""
    row = stored.get(session, name)
    if row is None:
        raise NotFound(f"There is no plan {name!r}; `fairlane plans list` shows them.")
    return _whole(row)


def _whole(row: Row) -> Row:
    return row | {"limits": Limits.model_validate(row["limits"])}


def _no_tenant(tenant_id: str) -> NotFound:
    return NotFound(f"There is no organization {tenant_id!r}; `fairlane tenants list` shows their ids.")


class LaneBook(Protocol):
    """The lanes, as far as plans concern them."""

    def configure_many(self, configurations: Mapping[str, Lane], *, only_known: bool = False) -> int:
        """Tell lanes; how many took it over. Raises Unavailable when the broker does not answer."""
        ...


def _log_untold(reason: str) -> None:
    log.warning("lanes_not_told", reason=reason)


class Plans:
    """Changes plans and limits. `untold` is given the reason when a change is stored and the lanes do not know it.

    What is changed for one tenant stands in its audit, as done by `by`.
    """

    def __init__(
        self,
        database: Database,
        lanes: LaneBook,
        *,
        untold: Callable[[str], None] = _log_untold,
        by: Actor = OPERATOR,
    ) -> None:
        self._database = database
        self._lanes = lanes
        self._untold = untold
        self._by = by

    def set_plan(self, session: SystemSession, tenant_id: str, name: str) -> None:
        """Put a tenant on a plan; what differs for it stays. Raises NotFound for tenant or plan."""
        get(session, name)
        self._change_tenant(session, tenant_id, "plan_set", {"plan": name}, plan=name)

    def set_limits(self, session: SystemSession, tenant_id: str, values: Mapping[str, float | int | None]) -> None:
        """Let limits of one tenant differ from its plan, by values as `parse_limit` makes them. Raises NotFound."""
        self._change_tenant(session, tenant_id, "limits_set", values, overrides=values)

    def unset_limits(self, session: SystemSession, tenant_id: str, *names: str) -> None:
        """Let its plan decide again. Raises NotFound."""
        self._change_tenant(session, tenant_id, "limits_unset", {"limits": list(names)}, without=names)

    def set_policy(self, session: SystemSession, tenant_id: str, policy: str) -> None:
        """What becomes of starts from outside over the monthly limit: ``hold`` or ``reject``. Raises NotFound."""
        if policy not in POLICIES:
            raise _refusal("policy", f"The policy cannot be {policy!r}: want {' or '.join(POLICIES)}.")
        change: dict[str, Any] = (
            {"without": ("over_quota",)} if policy == POLICIES[0] else {"overrides": {"over_quota": policy}}
        )
        self._change_tenant(session, tenant_id, "over_quota_set", {"policy": policy}, **change)

    def suspend(self, session: SystemSession, tenant_id: str) -> None:
        """Begin nothing more for a tenant and let nobody in; what waits stays. Raises NotFound."""
        self._change_tenant(session, tenant_id, "suspended", status="suspended")

    def resume(self, session: SystemSession, tenant_id: str) -> None:
        """Undo `suspend`. Raises NotFound."""
        self._change_tenant(session, tenant_id, "resumed", status="active")

    def pause_lane(self, session: SystemSession, tenant_id: str) -> None:
        """Begin no more runs of a tenant; they are accepted and wait. Outlives Redis. Raises NotFound."""
        self._change_tenant(session, tenant_id, "lane_paused", overrides=stored.PAUSED)

    def resume_lane(self, session: SystemSession, tenant_id: str) -> None:
        """Undo `pause_lane`. Raises NotFound."""
        self._change_tenant(session, tenant_id, "lane_resumed", without=tuple(stored.PAUSED))

    def change_plan(self, session: SystemSession, name: str, values: Mapping[str, float | int | None]) -> None:
        """Change limits of a plan, for all its tenants at once. Raises NotFound."""
        stored.lock(session)
        if not stored.change(session, name, values):
            get(session, name)
        session.after_commit(partial(self._or_leave, partial(self.tell_plan, name)))

    def create_plan(self, session: SystemSession, name: str, limits: Limits) -> None:
        """Raises InvalidInput for a name that a plan cannot have, and Conflict when there is one of that name."""
        if PLAN_NAME.fullmatch(name) is None:
            raise _refusal("name", f"A plan cannot be named {_short(name)}: want {_PLAN_NAME_WANTED}.")
        stored.lock(session)
        if stored.get(session, name) is not None:
            raise Conflict(f"There is a plan {name!r} already.")
        stored.insert(session, name, limits.model_dump())

    def tell(self, tenant_id: str) -> int:
        """Tell a tenant's lane how Postgres wants it, also when nothing ever waited there. Raises Unavailable."""
        with self._database.system() as session:
            lanes = stored.lanes(session, [tenant_id])
        return self._lanes.configure_many(lanes)

    def tell_plan(self, name: str) -> int:
        """Tell the lanes of all tenants of a plan that have one; how many learnt something. Raises Unavailable."""
        told, after = 0, ""
        while True:
            with self._database.system() as session:
                lanes = stored.lanes_of_plan(session, name, after=after, limit=BATCH)
            if not lanes:
                return told
            told += self._lanes.configure_many(lanes, only_known=True)
            after = next(reversed(lanes))

    def _change_tenant(
        self, session: SystemSession, tenant_id: str, what: str, data: Mapping[str, Any] | None = None, **change: Any
    ) -> None:
        stored.lock(session)
        if not stored.change_tenant(session, tenant_id, **change):
            raise _no_tenant(tenant_id)
        audit.record_for(session, tenant_id, self._by, f"tenant.{what}", tenant_id, **(data or {}))
        session.after_commit(partial(self._or_leave, partial(self.tell, tenant_id)))

    def _or_leave(self, tell: Callable[[], int]) -> None:
        try:
            tell()
        except Unavailable as error:
            self._untold(error.detail)
