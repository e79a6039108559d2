"""The Celery app that the broker benchmarks and fault runs give to real workers.

Configured by the environment, because a worker is a process of its own: ``BENCH_BROKER`` (URL), ``BENCH_OPTIONS``
(JSON, transport options), ``BENCH_PREFETCH`` (multiplier), ``BENCH_JOURNAL`` (URL of the Redis where `note` writes what
it does; a server that the fault does not hit).
"""

# Celery has no annotations.
# mypy: disable-error-code="no-untyped-call,untyped-decorator"

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

import redis
from celery import Celery
from celery.signals import task_prerun, worker_ready

from engine.fairshare import register, started

READY = "the worker is ready"
"""What a worker writes to its log when it begins to consume, at any log level."""

register()


def make_app(broker: str, options: dict[str, Any], *, prefetch: int = 1) -> Celery:
    app = Celery("bench", broker=broker, set_as_current=False)
    app.conf.update(
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        task_acks_late=True,
        task_default_queue="runs",
        task_ignore_result=True,
        task_publish_retry=False,
        worker_prefetch_multiplier=prefetch,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    app.task(name="noop", shared=False)(noop)
    app.task(name="nap", shared=False)(nap)
    app.task(name="note", shared=False, bind=True)(note)
    return app


def noop() -> None:
    """Nothing: what is left is the cost of the broker."""


def nap(seconds: float, spread: float = 0.0) -> None:
    """Sleeps so long, give or take a part of it: work of exactly the same length would end in step for ever."""
    time.sleep(seconds * random.uniform(1 - spread, 1 + spread))


def note(self: Any, seconds: float) -> None:
    """Sleeps, and writes down when it began and ended, and in which process."""
    journal = _journal()
    journal.rpush("journal", f"start {self.request.id} {os.getpid()} {time.time()}")
    time.sleep(seconds)
    journal.rpush("journal", f"end {self.request.id} {os.getpid()} {time.time()}")


_clients: dict[str, redis.Redis] = {}


def _journal() -> redis.Redis:
    url = os.environ["BENCH_JOURNAL"]
    if url not in _clients:
        _clients[url] = redis.Redis.from_url(url)
    return _clients[url]


@task_prerun.connect
def _started(task_id: str, **_: Any) -> None:
    started(task_id)


@worker_ready.connect
def _ready(**_: Any) -> None:
    print(READY, file=sys.__stdout__, flush=True)


app = make_app(
    os.environ.get("BENCH_BROKER", "memory://"),
    json.loads(os.environ.get("BENCH_OPTIONS", "{}")),
    prefetch=int(os.environ.get("BENCH_PREFETCH", "1")),
)
