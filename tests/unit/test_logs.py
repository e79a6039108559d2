"""Log lines: their form, what is bound to them, and what never stands in them."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from engine import logs
from engine.settings import Settings

PASSWORD, SECRET, KEY = "pass-word-of-db", "s3cret" * 8, base64.b64encode(b"k" * 32).decode()


def settings(log_format: str) -> Settings:
    return Settings.load(
        database_url=f"postgresql://fairlane:{PASSWORD}@db/fairlane",
        redis_url="redis://:word%2Fof%2Fredis@redis:6379/0",
        secret_key=SECRET,
        master_keys=f"k1:{KEY}",
        log_format=log_format,
    )


@pytest.fixture
def configured() -> Iterator[Callable[..., io.StringIO]]:
    """Configures logging into a text; afterwards everything is as it was."""
    root = logging.getLogger()
    before = (root.handlers, root.level)

    def configure(log_format: str = "json", level: int = logging.INFO) -> io.StringIO:
        stream = io.StringIO()
        logs.configure(settings(log_format), level=level, stream=stream)
        return stream

    yield configure
    root.handlers, root.level = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    for name in (*logs.TELLING_URLS, *logs.PER_MESSAGE):
        logging.getLogger(name).setLevel(logging.NOTSET)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail_beside_a_secret() -> None:
    hidden = SECRET + PASSWORD  # the value stands nowhere in the source that a traceback quotes
    raise ValueError(f"failed with {len(hidden)} characters")


def test_a_json_line_has_event_level_timestamp_and_the_bound_ids(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    with structlog.contextvars.bound_contextvars(tenant="tenant_1", run="run_1"):
        structlog.get_logger("engine.sweeper").warning("run_lost", attempt=2)
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "run_lost",
        "logger": "engine.sweeper",
        "attempt": 2,
        "tenant": "tenant_1",
        "run": "run_1",
    }


def test_lines_of_libraries_look_like_ours(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    with structlog.contextvars.bound_contextvars(run="run_1"):
        logging.getLogger("celery.apps.worker").info("%s ready.", "worker1@host")
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["run"]) == ("worker1@host ready.", "info", "run_1")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_is_shown_without_the_values_of_variables(
    configured: Callable[..., io.StringIO], log_format: str
) -> None:
    stream = configured(log_format)
    try:
        fail_beside_a_secret()
    except ValueError:
        structlog.get_logger("api").exception("broken")
        logging.getLogger("library").exception("broken too")
    said = stream.getvalue()
    assert said.count("ValueError: failed with 63 characters") == 2
    assert said.count("test_logs.py") >= 2
    assert "hidden = " not in said
    assert SECRET[:6] not in said


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "secret",
    [
        PASSWORD, SECRET, KEY, "word/of/redis", "word%2Fof%2Fredis",
        "fl_" + "0123456789abcdef" * 4, "whsec_" + KEY,
        "eyJhbGciOiJIUzI1NiJ9.eyJ1c2VyX2lkIjoxfQ.c2lnbmF0dXJl",
    ],
)  # fmt: skip
def test_a_secret_is_masked_wherever_it_comes_up(
    configured: Callable[..., io.StringIO], log_format: str, secret: str
) -> None:
    stream = configured(log_format)
    logger = structlog.get_logger("api")
    logger.warning(f"said {secret} in the event", value=secret, nested={"deep": [secret]})
    logging.getLogger("library").warning("said %s", secret)
    try:
        raise ValueError(secret)
    except ValueError:
        logger.exception("raised")
    said = stream.getvalue()
    assert secret not in said
    assert said.count("[redacted]") >= 5


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("postgresql://ada:hidden-word@db/x", "postgresql://ada:[redacted]@db/x"),
        ("Authorization: Bearer hidden-word.of+someone/else==", "Authorization: Bearer [redacted]"),
        ("Authorization: Basic aGlkZGVuLXdvcmQ=", "Authorization: Basic [redacted]"),
        ("fairredis://:**@127.0.0.1:6379/0 at 10:30:00, ada@example.com", None),
        ("fl_ is how keys begin; a Bearer token is meant", None),
    ],
)
def test_what_looks_like_a_credential_is_masked_and_nothing_else(
    configured: Callable[..., io.StringIO], text: str, kept: str | None
) -> None:
    stream = configured()
    structlog.get_logger("x").info(text)
    assert lines(stream)[0]["event"].replace("[redacted]", "**") == (kept or text).replace("[redacted]", "**")


def test_a_long_line_of_a_stranger_costs_little(configured: Callable[..., io.StringIO]) -> None:
    """A megabyte like this took an older expression six minutes, and the whole process with it."""
    stream = configured()
    line = "-eyJ" * 250_000
    structlog.get_logger("x").info(line)
    assert lines(stream)[0]["event"] == line


def test_urls_that_actions_call_are_not_logged_even_at_debug(configured: Callable[..., io.StringIO]) -> None:
    stream = configured(level=logging.DEBUG)
    logging.getLogger("httpx").info("HTTP Request: GET https://api.example.com/?appid=hidden")
    logging.getLogger("httpcore.connection").debug("connect to https://api.example.com/?appid=hidden")
    assert stream.getvalue() == ""


def test_lines_per_message_are_left_out_unless_debugging(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    for name in logs.PER_MESSAGE:
        logging.getLogger(name).info("Task received")
        logging.getLogger(name).warning("Task failed")
    assert [line["event"] for line in lines(stream)] == ["Task failed"] * len(logs.PER_MESSAGE)
    stream = configured(level=logging.DEBUG)
    logging.getLogger("celery.worker.strategy").info("Task received")
    assert [line["event"] for line in lines(stream)] == ["Task received"]


def test_a_value_that_json_cannot_hold_does_not_lose_the_line(configured: Callable[..., io.StringIO]) -> None:
    stream = configured()
    structlog.get_logger("x").info("odd", value={1, 2}, text="line\nbreak")
    (line,) = lines(stream)
    assert (line["value"], line["text"]) == ("{1, 2}", "line\nbreak")


def test_the_console_form_is_one_short_line_without_colours_for_files(configured: Callable[..., io.StringIO]) -> None:
    stream = configured("console")
    structlog.get_logger("engine.sweeper").info("swept", published=3)
    (line,) = stream.getvalue().splitlines()
    assert "swept" in line
    assert "published=3" in line
    assert "\x1b" not in line
    assert "engine.sweeper" not in line
