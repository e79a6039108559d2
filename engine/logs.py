"""How every process logs: one line per event on stderr, for people (``console``) or for programs (``json``).

`configure` is called once when a process starts: by the API, by Celery's worker and beat. Lines of libraries then look
like ours. A line in JSON has ``timestamp`` (UTC), ``level``, ``event``, ``logger``, and the ids that were bound where
it was said: ``request_id`` (in a worker, too, for what a request led to), ``tenant``, ``workflow``, ``run``, ``step``.

Never a secret: exceptions are shown without the values of variables, libraries that would log the URLs of calls are
kept quiet, and what looks like a token, or is one of this installation's own secrets, is masked in the finished line.
A run's own log is not here but in Postgres; what Celery says about each message is noise beside that, and left out.

A line that cannot be written is lost; logging never stops the work that it tells of.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from engine.redaction import MASK, Redactor
from engine.settings import Settings

FIRST = ("timestamp", "level", "event")
"""The keys that a line in JSON begins with."""
TELLING_URLS = ("httpx", "httpcore")
"""Loggers that name each URL called, which may hold a credential: never below WARNING."""
PER_MESSAGE = ("celery.worker.strategy", "celery.app.trace", "celery.beat", "alembic.runtime.migration")
"""Loggers with lines for each run, tick or look at the schema, as every `/readyz` takes one: only at DEBUG."""
WITH_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access")
"""Loggers whose libraries have given them handlers of their own."""

_TOKENS = re.compile(
    r"(?P<user>://[^\s/:@]*:)[^\s/@]+(?=@)"  # the password of a URL
    r"|(?P<scheme>\b(?:Bearer|Basic) )[A-Za-z0-9+/._~-]{6,}=*"
    r"|(?P<mark>\b(?:fl_|whsec_|xox[abp]-))[A-Za-z0-9+/=-]{8,}"
    r"|(?P<jwt>\beyJ)[A-Za-z0-9_-]{1,500}+\.[A-Za-z0-9_-]++\.[A-Za-z0-9_-]++"
)
"""Read in time that grows with the line only: lines hold what strangers sent, such as the path that they asked for."""


def configure(settings: Settings, *, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Let this process log in the form of `settings.log_format`, to stderr unless `stream` is given."""
    stream = stream or sys.stderr
    as_json = settings.log_format == "json"
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_shared(as_json), _for_handler],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        _Formatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering(stream, as_json)],
            foreign_pre_chain=_shared(as_json),
            mask=_mask_for(settings),
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    _tame_libraries(level)


_for_handler = structlog.stdlib.ProcessorFormatter.wrap_for_formatter


def _shared(as_json: bool) -> list[Processor]:
    """What is added to every line, ours or a library's."""
    moment = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if not as_json:
        moment = structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        moment,
        structlog.processors.StackInfoRenderer(),
    ]


def _rendering(stream: TextIO, as_json: bool) -> list[Processor]:
    """From event to text. Tracebacks without the values of variables: those may be secrets."""
    if as_json:
        return [structlog.processors.format_exc_info, _in_order, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [_without_logger, structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]


def _in_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: str(event.pop(key)).strip() for key in FIRST if key in event}
    return {**first, **event}


def _without_logger(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event.pop("logger", None)
    return event


def _tame_libraries(level: int) -> None:
    for name in TELLING_URLS:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
    for name in PER_MESSAGE:
        logging.getLogger(name).setLevel(level if level < logging.INFO else max(level, logging.WARNING))
    for name in WITH_HANDLERS:
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers, logger.propagate = [], True


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Masks the finished line, so that no way into it is forgotten."""

    def __init__(self, *, mask: Callable[[str], str], **options: Any) -> None:
        super().__init__(**options)
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        return self._mask(super().format(record))


def _mask_for(settings: Settings) -> Callable[[str], str]:
    own = Redactor(list(_secrets(settings)))

    def mask(line: str) -> str:
        return str(own(_TOKENS.sub(_masked, line)))

    return mask


def _masked(match: re.Match[str]) -> str:
    return f"{match[match.lastgroup or 0]}{MASK}"


def _secrets(settings: Settings) -> Iterator[str]:
    """The secrets of this installation, each as it might come up in a line."""
    yield settings.secret_key.get_secret_value()
    for entry in settings.master_keys.get_secret_value().split(","):
        yield entry.partition(":")[2].strip()
    for url in (settings.database_url, settings.redis_url):
        if password := urlsplit(url).password:
            yield password
            yield unquote(password)
