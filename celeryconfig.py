"""Celery's settings. What an operator may change comes from `engine.settings`; the rest is what our promises need.

JSON only, ids in messages, acknowledged late: a message leaves the broker when its work is done or in Postgres.
Publishing is not retried here: a run is in Postgres before it is published, and the sweeper publishes what was not.
"""

from kombu.entity import Queue

from engine import fairshare
from engine.errors import ConfigurationError
from engine.settings import settings

try:
    configured = settings()
except ConfigurationError as error:
    raise SystemExit(error.detail) from None  # the stock `celery` shows it alone, without a traceback

fairshare.register()

RUNS = "runs"
SYSTEM = "system"

broker_url = configured.broker_url
broker_transport_options = {
    "fair_queues": [RUNS],
    "lease": configured.lease_seconds,
    "socket_timeout": 2,  # so that no request waits for Redis for more than 3 s, whatever it was doing
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "max_retries": 0,  # a publisher of ours does not wait for Redis; workers reconnect by the settings below
}
broker_pool_limit = configured.database_pool_size * 2 + 4  # one for each thread: none waits behind another's timeout
broker_connection_retry_on_startup = True
broker_connection_max_retries = None

task_queues = [Queue(RUNS), Queue(SYSTEM)]
task_default_queue = SYSTEM
task_create_missing_queues = False
task_serializer = "json"
accept_content = ["json"]
result_accept_content = ["json"]
task_ignore_result = True
task_publish_retry = False
task_acks_late = True
task_reject_on_worker_lost = True

worker_prefetch_multiplier = 1
worker_pool = "threads"
worker_concurrency = 8
worker_cancel_long_running_tasks_on_connection_loss = False
worker_hijack_root_logger = False
worker_send_task_events = False

beat_scheduler = "tasks:TickScheduler"
beat_max_loop_interval = 1
timezone = "UTC"
