"""The plain thing that one would write instead of Fairlane: Celery on stock Redis, and one row per run.

The row is inserted when the run is enqueued and updated at its end, with SQLAlchemy Core; acknowledged late; prefork
with one process per core, the fastest pool for it here (threads and solo were slower).
"""

from __future__ import annotations

import os
import uuid
from functools import cache

import sqlalchemy as sa
from celery import Celery

app = Celery("baseline", broker=os.environ.get("BASELINE_REDIS_URL"))
app.conf.update(task_acks_late=True, task_ignore_result=True, broker_connection_retry_on_startup=True)

metadata = sa.MetaData()
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("input", sa.JSON),
    sa.Column("output", sa.JSON),
    sa.Column("queued_at", sa.DateTime(timezone=True), server_default=sa.func.now()),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
)


@cache
def engine() -> sa.Engine:
    return sa.create_engine(os.environ["BASELINE_DATABASE_URL"], pool_size=10)


def enqueue(text: str) -> None:
    run_id = uuid.uuid4().hex
    with engine().begin() as connection:
        connection.execute(runs.insert().values(id=run_id, status="queued", input={"text": text}))
    execute.apply_async(args=(run_id, text))


@app.task(name="baseline.execute")
def execute(run_id: str, text: str) -> None:
    with engine().begin() as connection:
        connection.execute(
            runs.update()
            .where(runs.c.id == run_id)
            .values(status="succeeded", output={"text": text}, finished_at=sa.func.now())
        )
