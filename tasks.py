"""The Celery app, every task, and the one place where the parts of the engine are put together.

`services` is made on first use, once per process. Tasks carry ids and find everything else in Postgres. The ticks of
beat run inside the beat process, each in a thread of its own: so they need no free worker, and not even Redis.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import structlog
from celery import Celery, Task, signals
from celery.beat import Scheduler as BeatScheduler
from celery.exceptions import Reject
from celery.schedules import crontab
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from structlog.contextvars import bind_contextvars, clear_contextvars, get_contextvars

import actions
import exporters
import triggers
from engine import fairshare, logs, metrics, tracing
from engine.audit import Sealer
from engine.billing import Closer
from engine.breaker import Breaker
from engine.db import Database
from engine.errors import ConfigurationError, PutBack, Unavailable, WrittenByNewer
from engine.executor import Executor
from engine.expressions import Evaluator
from engine.held import Held
from engine.leaving import Eraser
from engine.mail import Mailer
from engine.metering import Metering
from engine.notice_delivery import NoticeDelivery
from engine.notices import Notices
from engine.pipeline import Tools
from engine.ports import Lane, PollMessage, RunMessage
from engine.quotas import Reconciler
from engine.resume_links import ResumeLinks
from engine.retention import Retention
from engine.runs import Runs
from engine.settings import Settings, settings
from engine.sweeper import Sweeper
from engine.tallies import Flusher
from engine.usage import RollUp
from engine.vault import MasterKeyRing, Vault
from engine.workflows import Workflows

log = structlog.get_logger(__name__)

app = Celery("fairlane")
app.config_from_object("celeryconfig")

UNAVAILABLE_PAUSE = 2.0
"""Seconds that a worker waits before it hands a message back because Postgres is down."""


REQUEST_ID = "request_id"
"""In log lines, and the header of messages that a request of the API led to."""

SILENT_SHARE = 2 / 3
"""Of a lease, after which the sweeper asks about a run without a heartbeat: it has missed four."""


@dataclass(frozen=True)
class Services:
    """The parts of the engine in this process."""

    settings: Settings
    database: Database
    vault: Vault
    actions: actions.Registry
    evaluator: Evaluator
    publisher: CeleryPublisher
    lanes: fairshare.Lanes
    runs: Runs
    links: ResumeLinks
    workflows: Workflows
    receiver: triggers.Receiver
    executor: Executor
    sweeper: Sweeper
    sealer: Sealer
    eraser: Eraser
    closer: Closer
    metering: Metering | None
    """None while no payment provider is configured."""
    held: Held
    flusher: Flusher
    roll_up: RollUp
    reconciler: Reconciler
    retention: Retention
    notices: Notices
    notice_delivery: NoticeDelivery


def services() -> Services:
    """The parts of this process; a forked child gets its own."""
    return _services(os.getpid())


@lru_cache(maxsize=1)
def _services(_pid: int) -> Services:
    configured = settings()
    tracing.configure(configured)
    database = Database(configured.database_url, pool_size=configured.database_pool_size)
    vault = Vault(MasterKeyRing(configured.master_key_ring))
    registry = _actions(configured)
    evaluator = Evaluator()
    lanes = fairshare.Lanes(configured.redis_url, queue="runs")
    publisher = CeleryPublisher(lanes)
    mailer = Mailer(configured)
    runs = Runs(publisher)
    links = ResumeLinks(configured.secret_key.get_secret_value(), configured.public_url)
    return Services(
        settings=configured,
        database=database,
        vault=vault,
        actions=registry,
        evaluator=evaluator,
        publisher=publisher,
        lanes=lanes,
        runs=runs,
        links=links,
        workflows=Workflows(registry, triggers.KINDS, vault),
        receiver=triggers.Receiver(database, runs, vault, max_bytes=configured.webhook_max_bytes),
        executor=Executor(
            Tools(database, vault, registry, evaluator, runs, links), lease_seconds=configured.lease_seconds
        ),
        sweeper=Sweeper(database, publisher, runs=runs, silent_seconds=configured.lease_seconds * SILENT_SHARE),
        sealer=Sealer(database),
        eraser=Eraser(database, forget_lane=lanes.drain),
        closer=Closer(database),
        metering=_metering(configured, database),
        held=Held(database, runs),
        flusher=Flusher(database).start(),
        roll_up=RollUp(database, labels=configured.metrics_tenant_limit),
        reconciler=Reconciler(database),
        retention=Retention(database),
        notices=Notices(database, mails=mailer.configured),
        notice_delivery=NoticeDelivery(
            database, post=registry.client.post, mailer=mailer, key=configured.secret_key.get_secret_value()
        ),
    )


def _actions(configured: Settings) -> actions.Registry:
    urls = {name: url for name, url in configured.service_urls.items() if name not in exporters.SERVICES}
    return actions.build(allowed_networks=configured.allowed_networks, service_urls=urls)


def _metering(configured: Settings, database: Database) -> Metering | None:
    key = configured.stripe_key
    exporter = exporters.build(
        stripe_key=None if key is None else key.get_secret_value(),
        stripe_meter=configured.stripe_meter,
        service_urls=configured.service_urls,
    )
    return None if exporter is None else Metering(database, exporter)


class CeleryPublisher:
    """The `engine.ports.Publisher` over Celery: one task message per run, in its tenant's lane.

    Once Redis has not answered, nobody waits for it until it does (`engine.breaker`).
    """

    def __init__(self, lanes: fairshare.Lanes) -> None:
        self._lanes = lanes
        self._breaker = Breaker("Redis", failures=(OperationalError, RedisError, OSError), probe=lanes.epoch)

    def publish(self, messages: Iterable[RunMessage]) -> None:
        for message in messages:
            self._breaker.call(partial(_publish_run, message))

    def publish_poll(self, message: PollMessage) -> None:
        self._breaker.call(partial(_publish_poll, message))

    def holds(self, message_ids: Sequence[str]) -> set[str]:
        return self._breaker.call(lambda: self._lanes.holds(message_ids))


def _publish_run(message: RunMessage) -> None:
    about = {"fairlane.tenant": message.tenant_id, "fairlane.workflow": message.flow, "fairlane.run": message.run_id}
    with tracing.span("enqueue", about, kind="producer"):
        run.apply_async(
            args=(message.tenant_id, message.run_id),
            task_id=message.id,
            queue="runs",
            priority=message.priority,
            headers=_headers(message.tenant_id, message.flow, message.lane),
        )


def _publish_poll(message: PollMessage) -> None:
    about = {"fairlane.tenant": message.tenant_id, "fairlane.workflow": message.workflow_id}
    with tracing.span("enqueue", about, kind="producer"):
        poll.apply_async(
            args=(message.tenant_id, message.workflow_id),
            task_id=message.id,
            queue="runs",
            headers=_headers(message.tenant_id, message.workflow_id, message.lane),
        )


def _headers(tenant_id: str, flow: str, lane: Lane | None) -> dict[str, Any]:
    """Which lane the message belongs to, what that lane's plan says, and which request and trace it comes from."""
    headers = {"tenant_id": tenant_id, "flow": flow, **tracing.headers()} | ({} if lane is None else {"lane": lane})
    request_id = get_contextvars().get(REQUEST_ID)
    return headers if request_id is None else {**headers, REQUEST_ID: request_id}


@app.task(name="fairlane.run", bind=True)
def run(self: Task, tenant_id: str, run_id: str) -> None:
    """Execute one run."""
    with tracing.continued(self.request.headers):
        _or_hand_back(self, lambda: services().executor.run(tenant_id, run_id))


@app.task(name="fairlane.poll", bind=True)
def poll(self: Task, tenant_id: str, workflow_id: str) -> None:
    """Poll one source once, and start a run for each new item."""
    with tracing.continued(self.request.headers):
        _or_hand_back(self, lambda: pollers().poll(tenant_id, workflow_id))


def _or_hand_back(task: Task, work: Callable[[], object]) -> None:
    """What cannot be done here now goes back to its lane, after a pause, instead of being used up.

    That is so while Postgres does not answer, and for what only a newer worker can read. A run that was put back in
    Postgres, as it is while the evaluator does not answer, gets a message of its own from the sweeper.
    """
    try:
        work()
    except Unavailable as error:
        metrics.HANDED_BACK.inc(reason="newer" if isinstance(error, WrittenByNewer) else "unavailable")
        log.warning("task_handed_back", task=task.name, id=task.request.id, reason=error.detail)
        time.sleep(UNAVAILABLE_PAUSE)
        if isinstance(error, PutBack):
            return
        raise Reject(error.detail, requeue=True) from error


@app.task(name="fairlane.tick.schedules")
def tick_schedules() -> None:
    """Fire what is due."""
    scheduler().run_once()


@app.task(name="fairlane.tick.sweep")
def tick_sweep() -> None:
    """Repair what a crash left behind."""
    services().sweeper.run_once()


@app.task(name="fairlane.tick.seal")
def tick_seal() -> None:
    """Let the audit vouch for the decryptions that were recorded."""
    services().sealer.run_once()


@app.task(name="fairlane.tick.erase")
def tick_erase() -> None:
    """Erase organizations whose grace period is over."""
    services().eraser.run_once()


@app.task(name="fairlane.tick.close")
def tick_close() -> None:
    """Make the invoices of months that have ended."""
    services().closer.run_once()


@app.task(name="fairlane.tick.meter")
def tick_meter() -> None:
    """Report to the payment provider what is new."""
    metering = services().metering
    if metering is not None:
        metering.run_once()


@app.task(name="fairlane.tick.release")
def tick_release() -> None:
    """Let go of runs that were held over a quota, where there is room again."""
    services().held.run_once()


@app.task(name="fairlane.tick.roll_up")
def tick_roll_up() -> None:
    """Sum up what the ledger has got since the last time."""
    services().roll_up.run_once()


@app.task(name="fairlane.tick.reconcile")
def tick_reconcile() -> None:
    """Compare the counters of admitted runs with the ledger."""
    services().reconciler.run_once()


@app.task(name="fairlane.tick.expire")
def tick_expire() -> None:
    """Delete runs that ended longer ago than they are kept."""
    services().retention.run_once()


@app.task(name="fairlane.tick.notice")
def tick_notice() -> None:
    """Note which organizations have nearly used up their month."""
    services().notices.run_once()


@app.task(name="fairlane.tick.deliver")
def tick_deliver() -> None:
    """Send the notices that are due."""
    services().notice_delivery.run_once()


app.conf.beat_schedule = {
    "schedules": {"task": "fairlane.tick.schedules", "schedule": 1.0},
    "sweep": {"task": "fairlane.tick.sweep", "schedule": 2.0},
    "seal": {"task": "fairlane.tick.seal", "schedule": 10.0},
    "erase": {"task": "fairlane.tick.erase", "schedule": 60.0},
    "close": {"task": "fairlane.tick.close", "schedule": 600.0},
    "meter": {"task": "fairlane.tick.meter", "schedule": 60.0},
    "release": {"task": "fairlane.tick.release", "schedule": 1.0},
    "roll_up": {"task": "fairlane.tick.roll_up", "schedule": 10.0},
    "notice": {"task": "fairlane.tick.notice", "schedule": 5.0},
    "deliver": {"task": "fairlane.tick.deliver", "schedule": 2.0},
    "expire": {"task": "fairlane.tick.expire", "schedule": 60.0},
    "reconcile": {"task": "fairlane.tick.reconcile", "schedule": crontab(hour=3, minute=17)},
}


def scheduler() -> triggers.Scheduler:
    parts = services()
    return triggers.Scheduler(parts.database, parts.runs, parts.publisher)


def pollers() -> triggers.Poller:
    parts = services()
    return triggers.Poller(parts.database, parts.runs, parts.actions.client)


class TickScheduler(BeatScheduler):
    """Celery's scheduler without its state file, that runs each tick here instead of sending it to a worker.

    Due times are rows in Postgres, so any number of beats may run, and none remembers anything. A tick that takes
    longer than its interval is not started twice.
    """

    producer = None
    """Celery would connect to the broker for one; the ticks go on without Redis."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._running: dict[str, threading.Thread] = {}
        super().__init__(*args, **kwargs)

    def apply_async(self, entry: Any, producer: Any = None, advance: Any = True, **kwargs: Any) -> None:  # noqa: ARG002
        entry = self.reserve(entry) if advance else entry
        earlier = self._running.get(entry.name)
        if earlier is None or not earlier.is_alive():
            thread = threading.Thread(target=_tick, args=(entry.name, entry.task), name=entry.name, daemon=True)
            self._running[entry.name] = thread
            thread.start()


def _tick(name: str, task: str) -> None:
    try:
        app.tasks[task].run()
    except Unavailable as error:
        log.warning("tick_missed", tick=name, reason=error.detail)
    except Exception:
        log.exception("tick_failed", tick=name)


@signals.task_prerun.connect
def _charge_from_here(task_id: str, **_context: Any) -> None:
    """A lane pays for the seconds of work, not for those that a message lay in a worker's hand."""
    fairshare.started(task_id)


@signals.task_prerun.connect
def _name_in_log_lines(task: Task, args: Sequence[str], **_context: Any) -> None:
    """From here and not only from the task on: what Celery says when one breaks has the ids, too."""
    clear_contextvars()
    if task.name in (run.name, poll.name):
        tenant_id, about = args
        bind_contextvars(**{"tenant": tenant_id, "run" if task.name == run.name else "workflow": about})
        if request_id := (task.request.headers or {}).get(REQUEST_ID):
            bind_contextvars(request_id=request_id)


@signals.task_postrun.connect
def _forget_for_log_lines(**_context: Any) -> None:
    clear_contextvars()


@signals.worker_process_shutdown.connect
def _send_what_is_left(**_context: Any) -> None:
    """A child of prefork ends without the handlers that every other process calls at its end."""
    if metrics.TALLIES.ever:
        services().flusher.stop()
    tracing.stop()


@signals.worker_init.connect
@signals.beat_init.connect
def refuse_leaky_isolation(**_context: Any) -> None:
    """End the process before it serves anybody when its database would not keep tenants apart.

    A database that does not answer is none yet: everything here waits for it, and `fairlane doctor` looks again.
    """
    try:
        services().database.verify()
    except Unavailable as error:
        log.warning("isolation_not_verified", reason=error.detail)
    except ConfigurationError as error:
        raise SystemExit(error.detail) from None


@signals.setup_logging.connect
def _log_as_we_do(loglevel: int, **_options: Any) -> None:
    """Whoever answers this signal sets up logging instead of Celery."""
    logs.configure(settings(), level=loglevel)
