"""What every command stands on: the servers it finds or starts, the schema, the page that names them all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer

import cli
import migrations
from embedded.home import Home
from tests.command_line import KEYS, ROOT, CommandLine, configured

PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
WITHOUT_DATA = {"up", "api", "worker", "beat", "runs resume", "lanes aside revive", "lanes aside forget"}
"""Commands that answer with a sentence at most, and so have no --json."""


def _commands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by the words that call it."""
    if not hasattr(command, "list_commands"):
        yield " ".join(words), command
        return
    context = typer.Context(command)
    for name in command.list_commands(context):
        yield from _commands(command.get_command(context, name), (*words, name))


COMMANDS = dict(_commands(typer.main.get_command(cli.app)))


def test_the_commands_of_the_contract_are_there() -> None:
    groups = {
        "tenants": "list show create set-plan set-limit suspend resume",
        "plans": "list show set",
        "runs": "list show cancel replay",
        "lanes": "list show pause resume check",
        "keys": "rotate",
    }
    named = {f"{group} {command}" for group, commands in groups.items() for command in commands.split()}
    assert named | {"up", "api", "worker", "beat", "migrate", "doctor"} <= COMMANDS.keys()


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_stands_on_the_page_with_an_example_and_its_options(words: str) -> None:
    assert re.search(rf"^### `fairlane {words}\b", PAGE, re.MULTILINE), f"docs/cli.md has no heading for {words}"
    _, _, section = PAGE.partition(f"### `fairlane {words}")
    section = section.partition("\n### ")[0].partition("\n## ")[0]
    assert f"$ fairlane {words}" in section
    for parameter in COMMANDS[words].params:
        own = [option for option in parameter.opts if option.startswith("--")]
        if own and not {"--json", "--data", "--help"} & set(own):
            assert own[0] in section, f"{words} takes {own[0]}, and its section does not say so"


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_has_help_and_json_where_it_prints_data(words: str) -> None:
    options = {option for parameter in COMMANDS[words].params for option in parameter.opts}
    assert COMMANDS[words].help
    assert "--data" in options
    assert ("--json" in options) == (words not in WITHOUT_DATA), words


@pytest.mark.parametrize("words", COMMANDS)
def test_every_argument_and_month_has_a_word_in_the_help_that_says_what_it_wants(words: str) -> None:
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "argument":
            assert parameter.metavar, f"{words} shows its argument as {{{parameter.name}}}"
        if {"--period", "--from"} & set(parameter.opts) and words != "runs replay":
            assert parameter.metavar == "YYYY-MM", f"{words} {parameter.opts[0]}"


def test_what_is_wrong_is_said_for_whoever_types_options_without_a_json_pointer(tmp_path: Path) -> None:
    result = CommandLine(tmp_path)("tenants", "usage", "acme", "--period", "2026-13")
    assert result.code == 2
    assert "Invalid value for --period: want a month such as 2026-11" in result.err


def test_the_page_names_no_command_that_is_not_there() -> None:
    assert set(re.findall(r"^### `fairlane ([a-z -]+?)`", PAGE, re.MULTILINE)) == COMMANDS.keys()


def test_a_group_without_a_command_shows_its_commands_and_is_wrong_usage(tmp_path: Path) -> None:
    result = CommandLine(tmp_path)("tenants")
    assert result.code == 2
    assert "set-limit" in result.out + result.err


def test_commands_start_the_embedded_servers_of_a_fresh_folder_and_stop_them(tmp_path: Path) -> None:
    fairlane = CommandLine(tmp_path)
    made = fairlane.fine("tenants", "create", "Acme", "--json").json
    process = fairlane.start("tenants", "list", "--json")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert made["id"] in out
    elsewhere = fairlane.fine("tenants", "list", "--json", "--data", str(tmp_path / "other"))
    assert elsewhere.json == []
    assert not (tmp_path / ".fairlane" / "postgres" / "data" / "postmaster.pid").exists()
    assert "FAIRLANE_DATABASE_URL" not in Home(tmp_path / ".fairlane").read_env()


def test_a_configured_database_without_the_schema_is_left_as_it_is(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fairlane = configured(tmp_path, empty_database_url, redis_url)
    result = fairlane("tenants", "list")
    assert result.code == 1
    assert result.err == f"The schema is at revision none, not at {migrations.head()}: run `fairlane migrate`.\n"
    with psycopg.connect(empty_database_url.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT to_regclass('tenants')").fetchone() == (None,)


def test_two_migrations_at_once_are_one_after_the_other(
    empty_database_url: str, redis_url: str, tmp_path: Path
) -> None:
    fairlane = configured(tmp_path, empty_database_url, redis_url)
    processes = [fairlane.start("migrate") for _ in range(3)]
    outcomes = [(process.communicate(timeout=60), process.returncode) for process in processes]
    assert [code for _, code in outcomes] == [0, 0, 0], outcomes
    assert fairlane.fine("tenants", "list", "--json").json == []


@pytest.mark.parametrize("words", [("tenants", "list"), ("runs", "list"), ("keys", "status"), ("plans", "list")])
def test_without_postgres_a_command_fails_with_one_sentence(tmp_path: Path, words: tuple[str, ...]) -> None:
    fairlane = configured(tmp_path, "postgresql://nobody@127.0.0.1:1/nothing", "redis://127.0.0.1:1/0")
    result = fairlane(*words)
    assert result.code == 1
    assert result.err.startswith("Postgres does not answer at FAIRLANE_DATABASE_URL: ")
    assert len(result.err.splitlines()) == 1


def test_missing_keys_are_named_before_anything_is_touched(database_url: str, redis_url: str, tmp_path: Path) -> None:
    fairlane = configured(tmp_path, database_url, redis_url)
    for name in KEYS:
        del fairlane.variables[name]
    result = fairlane("tenants", "list")
    assert result.code == 1
    assert "FAIRLANE_SECRET_KEY is not set" in result.err
    assert "FAIRLANE_MASTER_KEYS is not set" in result.err


def test_a_reader_that_has_seen_enough_ends_a_list_quietly(database_url: str, redis_url: str, tmp_path: Path) -> None:
    fairlane = configured(tmp_path, database_url, redis_url)
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "INSERT INTO tenants (id, name) SELECT 't' || n, repeat('x', 200) FROM generate_series(1, 900) n"
        )
    reader, writer = os.pipe()
    process = fairlane.start("tenants", "list", stdout=writer)
    os.close(writer)
    assert os.read(reader, 2) == b"id"
    os.close(reader)
    _, err = process.communicate(timeout=60)
    assert err == ""
