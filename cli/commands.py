"""What the commands share: the command lines of the processes, their environment, and checks before a start.

Nothing is ever imported from the folder that a command is started in: it may hold a file `api.py` or `tasks.py` of
somebody else, which would run with the server's secrets. Python is told by ``-P``, uvicorn by ``--app-dir``, and
Celery by `embedded.celery_command`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from embedded.home import DATA_DIR, DATABASE_URL, REDIS_URL, Home
from embedded.printer import JsonPrinter, Printer
from embedded.program import Child
from engine.errors import ConfigurationError
from engine.settings import PREFIX, Settings

if TYPE_CHECKING:
    from engine.ports import MeterExporter

ROOT = Path(__file__).resolve().parent.parent
QUEUES = "runs,system"
_PYTHON = (sys.executable, "-P", "-m")


class StopRank(IntEnum):
    """The order in which the processes of an installation stop: first what makes work, last what remembers it."""

    BEAT = 0
    WORKER = 1
    API = 2
    RECEIVER = 3
    REDIS = 4
    POSTGRES = 5


CELERY_ON_ROOT = "ignore:You're running the worker with superuser privileges"
WORKER_GRACE = 25.0
"""Seconds that a worker gets to finish what it runs; what it does not finish is run again by another."""
SECONDS_TO_CONNECT = 5
WORKER_QUICK = signal.SIGQUIT
"""Celery's cold shutdown."""


def use(data: Path) -> None:
    """Let this process and its children read the folder's ``env`` file."""
    os.environ[DATA_DIR] = str(data.absolute())


def configured(data: Path) -> Settings:
    """The settings, or a ConfigurationError before anything has been started."""
    use(data)
    return Settings.load()


def check_given(home: Home) -> None:
    """Refuse a bad variable before a server starts; what is not given is generated, or known once the servers run."""
    home.generate_keys()
    later = {DATABASE_URL: "postgresql://127.0.0.1/later", REDIS_URL: "redis://127.0.0.1/0"}
    given = {name.removeprefix(PREFIX).lower(): url for name, url in later.items() if name not in os.environ}
    require_extras(Settings.load(**given))


def require_extras(settings: Settings) -> None:
    """Refuse a variable whose library is not installed: with it, no process of the installation would start."""
    from engine import tracing

    tracing.require(settings)
    meter_exporter(settings)


def meter_exporter(settings: Settings) -> MeterExporter | None:
    """What reports to the payment provider; None where none is configured."""
    import exporters

    key = settings.stripe_key
    return exporters.build(
        stripe_key=None if key is None else key.get_secret_value(),
        stripe_meter=settings.stripe_meter,
        service_urls=settings.service_urls,
    )


def environment(**more: str) -> dict[str, str]:
    """The environment of a child process, which finds the project's modules wherever it was started."""
    # An empty part, such as the end of "$PYTHONPATH:", means the folder that the process is started in.
    path = os.pathsep.join(filter(None, (str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep))))
    # Celery warns root in twenty lines at each start; in containers root is common, and only JSON is accepted.
    warnings = ",".join(part for part in (os.environ.get("PYTHONWARNINGS", ""), CELERY_ON_ROOT) if part)
    # SAFEPATH is -P for what a process starts itself, such as a worker that SIGHUP lets start anew.
    ours = {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONWARNINGS": warnings}
    return {**os.environ, **ours, **more}


def worker(number: int, *, concurrency: int) -> tuple[str, ...]:
    """A stock Celery worker. Without gossip and mingle: workers need not know each other."""
    name = f"worker{number}-{os.getpid()}@%h"
    options = ("-P", "threads", "-c", str(concurrency), "-Q", QUEUES, "-n", name, "-l", "INFO")
    return _celery("worker", *options, "--without-mingle", "--without-gossip")


def worker_is_ready(line: str) -> bool:
    """Whether Celery says with this line, in either form of log lines, that it takes tasks."""
    return " ready." in line


def printer(children: Sequence[Child], settings: Settings) -> Printer:
    """How the words of `children` are shown: in the form of the log lines."""
    kind = JsonPrinter if settings.log_format == "json" else Printer
    return kind([child.name for child in children])


def beat() -> tuple[str, ...]:
    """A stock Celery beat. It keeps no state of its own: what is due is decided by rows in Postgres."""
    return _celery("beat", "--pidfile=", "-l", "INFO")


def api(host: str, port: int) -> tuple[str, ...]:
    """uvicorn on the API's factory."""
    address = ("--host", host, "--port", str(port))
    options = ("--factory", "--no-access-log", "--timeout-graceful-shutdown", "5", "--log-level", "warning")
    return (*_PYTHON, "uvicorn", "--app-dir", str(ROOT), "api.app:create_app", *address, *options)


def receiver(port: int) -> tuple[str, ...]:
    """The other side of the demo."""
    return (*_PYTHON, "embedded.receiver", str(port))


def _celery(*words: str) -> tuple[str, ...]:
    return (*_PYTHON, "embedded.celery_command", "-q", "-A", "tasks", *words)


def require_free(host: str, port: int) -> None:
    """Refuse a port that somebody listens on, before a server half-starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigurationError(
                f"Port {port} of {host} cannot be used ({error.strerror}): "
                f"choose another with --port, or `make up PORT={port + 10}`."
            ) from None


def require_redis(url: str) -> None:
    """Refuse to start workers that would only wait. Raises redis.RedisError; behind Sentinel nothing is asked."""
    import redis

    if not url.startswith("sentinel://"):
        with redis.Redis.from_url(url, socket_timeout=SECONDS_TO_CONNECT) as client:
            client.ping()


def given_database_url() -> str | None:
    """FAIRLANE_DATABASE_URL of the environment in SQLAlchemy's form; None when it is not set."""
    url = os.environ.get(DATABASE_URL)
    if not url:
        return None
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
        raise ConfigurationError(f"{DATABASE_URL}: want a URL such as postgresql://user:password@host:5432/fairlane.")
    return f"postgresql+psycopg://{rest}"
