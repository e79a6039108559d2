"""What a kind of trigger is, and the registry of them.

A kind says when a trigger falls due and what happens then; those that are started from outside never fall due. A new
kind is one file with a class like `TriggerKind`, a model in the workflow document, and its line in `triggers.KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from engine.definition import Trigger
from engine.definition_faults import faults_of
from engine.errors import InvalidInput
from engine.ports import Json
from engine.runs import Start
from engine.workflows import TriggerRow

_TRIGGER: TypeAdapter[Trigger] = TypeAdapter(Trigger)
SEALED = "sealed"
"""The key of a stored trigger that is not part of its document: a webhook's encrypted secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A trigger whose time has come."""

    tenant_id: str
    workflow_id: str
    trigger: Any
    """Its document: the model of its kind."""
    due_at: datetime
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do about a due trigger, and when it falls due again (None: never)."""

    next_fire_at: datetime | None
    starts: tuple[Start, ...] = ()
    """Runs to start now, in this order."""
    poll: bool = False
    """Whether a worker shall look at its source."""
    missed: int = 0
    """Fires that get no run, because they passed while no scheduler ran."""


class TriggerKind(Protocol):
    """One way in which runs begin. Stateless."""

    type: str
    """As the document names it."""

    def first_fire(self, workflow_id: str, trigger: Any, now: datetime) -> datetime | None:
        """When a trigger that is saved or switched on at `now` falls due; None when only the outside starts it.

        Raises InvalidInput for one that could fire by itself but never would.
        """
        ...

    def decide(self, due: Due) -> Decision:
        """What to do about a trigger that fell due."""
        ...


class StartedFromOutside:
    """Base of the kinds that never fall due by themselves."""

    def first_fire(self, workflow_id: str, trigger: Any, now: datetime) -> datetime | None:  # noqa: ARG002
        return None

    def decide(self, due: Due) -> Decision:  # noqa: ARG002
        return Decision(next_fire_at=None)


class Kinds(Mapping[str, TriggerKind]):
    """The kinds by type; also the `engine.workflows.TriggerKinds` of the service that saves workflows."""

    def __init__(self, kinds: Iterable[TriggerKind]) -> None:
        self._kinds = {kind.type: kind for kind in kinds}

    def __getitem__(self, name: str) -> TriggerKind:
        return self._kinds[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kinds)

    def __len__(self) -> int:
        return len(self._kinds)

    def row(self, workflow_id: str, trigger: Trigger, now: datetime) -> TriggerRow:
        """The row of a trigger that is saved at `now`. Raises InvalidInput for one that never fires."""
        next_fire_at = self[trigger.type].first_fire(workflow_id, trigger, now)
        config = _TRIGGER.dump_python(trigger, mode="json", by_alias=True, exclude_none=True, exclude={"secret"})
        return TriggerRow(trigger.type, config, next_fire_at)

    def next_fire(self, workflow_id: str, config: Mapping[str, Json], now: datetime) -> datetime | None:
        """When a stored trigger that is switched on at `now` falls due."""
        trigger = load(config)
        return self[trigger.type].first_fire(workflow_id, trigger, now)

    def decide(self, row: Mapping[str, Any]) -> Decision:
        """What to do about a row of `repository.triggers.due`. Raises InvalidInput when it cannot be read."""
        trigger = load(row["config"])
        return self[trigger.type].decide(
            Due(
                tenant_id=row["tenant_id"],
                workflow_id=row["workflow_id"],
                trigger=trigger,
                due_at=row["next_fire_at"],
                now=row["now"],
            )
        )


def load(config: Mapping[str, Json]) -> Trigger:
    """The document of a stored trigger. Raises InvalidInput when it is not ours, such as one of a newer version."""
    try:
        return _TRIGGER.validate_python({key: value for key, value in config.items() if key != SEALED})
    except ValidationError as error:
        raise InvalidInput(faults_of(error, config, "/trigger")) from None
