"""What a supervisor prints: prefixes and colours for people, JSON for programs, nothing that steers a terminal."""

from __future__ import annotations

import io
import json

import pytest

from embedded.printer import JsonPrinter, Printer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_names_are_aligned_and_on_a_terminal_each_has_its_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    printer = Printer(["api", "worker-1"], terminal)
    printer.say("api", "hello")
    printer.say("worker-1", "hello")
    one, two = terminal.getvalue().splitlines()
    assert one == "\x1b[36mapi      |\x1b[0m hello"
    assert two == "\x1b[32mworker-1 |\x1b[0m hello"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_who_wants_no_colours_gets_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    terminal = Terminal()
    Printer(["api"], terminal).say("api", "hello")
    assert terminal.getvalue() == "api | hello\n"


def test_control_characters_that_a_stranger_sent_do_not_reach_the_terminal() -> None:
    stream = io.StringIO()
    Printer(["receiver"], stream).say("receiver", "name: \x1b]0;owned\x07\x9b2J\ttab and ünïcode")
    assert stream.getvalue() == "receiver | name: \\x1b]0;owned\\x07\\x9b2J\ttab and ünïcode\n"


def test_json_lines_keep_their_keys_and_learn_who_said_them() -> None:
    stream = io.StringIO()
    printer = JsonPrinter(["api", "worker-1"], stream)
    printer.say(
        "worker-1", '{"timestamp": "2026-01-01T00:00:00Z", "level": "warning", "event": "run_lost", "run": "r"}'
    )
    printer.say("worker-1", "worker: Warm shutdown (MainProcess)")
    printer.say("receiver", '{"amount": 7}')
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first == {
        "timestamp": "2026-01-01T00:00:00Z",
        "level": "warning",
        "event": "run_lost",
        "run": "r",
        "process": "worker-1",
    }
    assert second.pop("timestamp").endswith("Z")
    assert second == {"level": "info", "event": "worker: Warm shutdown (MainProcess)", "process": "worker-1"}
    assert third["event"] == '{"amount": 7}'


@pytest.mark.parametrize("kind", [Printer, JsonPrinter])
def test_a_reader_that_went_away_is_noticed_and_raises_nothing(kind: type[Printer]) -> None:
    printer = kind(["api"], Closed())
    assert not printer.broken
    printer.say("api", "hello")
    assert printer.broken
