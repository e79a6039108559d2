"""The seams of the engine: what a plugged-in part must offer, and what it is given.

Each Protocol has at least two implementations, or a test twin that passes the same test suite. Values that cross a seam
are JSON values, frozen dataclasses or pydantic models; never a database session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from pydantic import BaseModel, Secret

Json: TypeAlias = Any
"""A JSON value: None, bool, int, float, str, list of Json, or dict of str to Json."""


class Clock(Protocol):
    """Where the time comes from; tests inject their own."""

    def now(self) -> datetime:
        """The present moment, timezone-aware, UTC."""
        ...


class StepContext(Protocol):
    """What an action may know and do while it runs. Made by the executor for one attempt of one step."""

    tenant_id: str
    workflow_id: str
    run_id: str
    step_id: str
    attempt: int
    """1 for the first attempt of this step in this run."""
    idempotency_key: str
    """``run:step[:item]``: the same over all attempts; sent as ``Idempotency-Key``."""
    credential: Secret[dict[str, Any]] | None
    """The decrypted credential of the step, masked wherever it is printed."""

    def remaining(self) -> float:
        """Seconds until the step's timeout; 0.0 when it has passed."""
        ...

    def wait(self, seconds: float) -> None:
        """Sleep without hiding a cancel: raises `engine.errors.Cancelled` as soon as the run is no longer ours."""
        ...

    def log(self, level: str, message: str, **data: Json) -> None:
        """Add a line to the execution log; level is ``debug``, ``info``, ``warning`` or ``error``."""
        ...


class Action(Protocol):
    """One thing a step can do, such as ``http.request``. Stateless: one instance serves all tenants and threads."""

    name: str
    """``product.verb``, unique in the registry."""
    summary: str
    """One sentence for people."""
    service: str | None
    """The credential service it uses, such as ``slack``; None when it takes no credential."""
    credential_required: bool
    has_effects: bool
    """True when it changes something outside, so that a dry run must not call it."""
    honours_deadline: bool
    """True when `run` ends by itself at ``context.remaining()``; otherwise the executor abandons it then."""
    input_model: type[BaseModel]
    output_schema: Mapping[str, Json]
    """JSON Schema of what `run` returns."""

    def run(self, context: StepContext, parameters: Any) -> Json:
        """Do it once. `parameters` is an instance of `input_model`. Raises RetryLater, Fatal or Suspend."""
        ...


@dataclass(frozen=True, slots=True)
class PollItem:
    """One thing a poll source found: a stable id for deduplication, and the data a run gets."""

    id: str
    data: Json


@dataclass(frozen=True, slots=True)
class PollResult:
    """What one poll brought: items, oldest first, and where the next poll goes on."""

    items: Sequence[PollItem]
    cursor: Json = None


class HttpClient(Protocol):
    """The guarded client of `actions.http`, as poll sources see it."""

    def fetch(self, url: str, *, headers: Mapping[str, str] | None = None, timeout: float = 30.0) -> HttpReply:
        """GET with every guard on. Raises RetryLater (network, 5xx, 429) or Fatal (refused target, 4xx)."""
        ...


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole answer, its body already bounded in size."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class PollSource(Protocol):
    """One kind of thing that can be polled, such as ``rss``; one file in `triggers` each."""

    name: str
    summary: str
    input_model: type[BaseModel]

    def poll(self, parameters: Any, cursor: Json, client: HttpClient) -> PollResult:
        """Fetch once. `parameters` is an instance of `input_model`; `cursor` what the last poll returned, else None."""
        ...


Lane: TypeAlias = Mapping[str, float]
"""What Postgres says of a tenant's lane (``lane_config``): weight, cap, rate, burst, paused (1 or 0) and version.

It travels with every message, so that a broker that lost its data knows the lanes again. An older version changes
nothing.
"""


@dataclass(frozen=True, slots=True)
class RunMessage:
    """What travels over the broker for one attempt of a run: ids only. `flow` is the workflow's id."""

    run_id: str
    tenant_id: str
    flow: str
    priority: int = 5
    attempt: int = 0
    """The attempts that began before; so a run that is queued again is a new message, and a repetition is not."""
    lane: Lane | None = None

    @property
    def id(self) -> str:
        """The message's own id: ``run_...`` at first, ``run_....2`` when it goes on after its second attempt."""
        return f"{self.run_id}.{self.attempt}" if self.attempt else self.run_id


@dataclass(frozen=True, slots=True)
class PollMessage:
    """What travels over the broker for one poll of one trigger; it is charged to the tenant like a run."""

    tenant_id: str
    workflow_id: str
    lane: Lane | None = None

    @property
    def id(self) -> str:
        """The same for every poll of the trigger: two of them never wait at once."""
        return f"poll:{self.workflow_id}"


class Publisher(Protocol):
    """The way from Postgres to a worker. Publishing the same message id twice is one message."""

    def publish(self, messages: Iterable[RunMessage]) -> None:
        """Hand over; raises `engine.errors.Unavailable` when the broker does not answer in time."""
        ...

    def publish_poll(self, message: PollMessage) -> None:
        """Hand over a poll; raises Unavailable likewise."""
        ...

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        """Those of `message_ids` that the broker queues or has leased to a worker."""
        ...


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """So much use of one customer in one hour."""

    identifier: str
    """The same however often it is sent: it counts once."""
    customer: str
    """As the provider calls it."""
    quantity: int
    at: datetime
    """When the hour began."""


class MeterExporter(Protocol):
    """A payment provider that usage is reported to."""

    @property
    def name(self) -> str:
        """Such as ``stripe``."""
        ...

    def send(self, event: MeterEvent) -> None:
        """Hand over; returns when the provider has it, also when it had it already.

        Raises Fatal when the provider refuses the event, RetryLater when it has not taken it and says so, and
        Unavailable when nobody knows whether it has.
        """
        ...


class KeyProvider(Protocol):
    """Where master keys live: they wrap the tenants' data keys and never leave this port in clear."""

    @property
    def current(self) -> str:
        """The id of the key that new data keys are wrapped with."""
        ...

    def wrap(self, plaintext: bytes, *, context: bytes) -> tuple[str, bytes]:
        """Encrypt a data key, bound to `context`: (master key id, wrapped)."""
        ...

    def unwrap(self, key_id: str, wrapped: bytes, *, context: bytes) -> bytes:
        """Decrypt it again; raises `engine.errors.VaultError` when the key is unknown or the bytes were altered."""
        ...


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed attempt is repeated; `attempts` counts the first one too."""

    attempts: int = 1
    initial: timedelta = timedelta(seconds=1)
    maximum: timedelta = timedelta(minutes=1)
