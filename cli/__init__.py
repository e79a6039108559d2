"""The operator's commands: ``fairlane COMMAND``. This page assembles them; each group has a file of its own.

Exit codes: 0 fine, 1 failed, 2 wrong usage. What went wrong is one sentence on stderr; a traceback is always a bug.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import doctor, import_legacy, processes, up
from cli.output import fail, sentence_for

__all__ = ["app", "main"]

GROUPS = ("tenants", "plans", "billing", "runs", "lanes", "keys")
"""Each is the `app` of the module of that name, imported when it is used: the other commands start faster."""


class Commands(TyperGroup):
    """The commands below, and the groups."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")  # pydantic's words, not for who types options
            raise

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in GROUPS:
            command = typer.main.get_command(import_module(f"cli.{cmd_name}").app)
            command.name = cmd_name
            return command
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    name="fairlane",
    cls=Commands,
    help="Fairlane runs the workflows of many organizations on Celery workers and shares them fairly.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fairlane {version('fairlane')}")
        raise typer.Exit


@app.callback(help=app.info.help)
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


app.command("up")(up.up)
app.command("api")(processes.api)
app.command("worker")(processes.worker)
app.command("beat")(processes.beat)
app.command("migrate")(processes.migrate)
app.command("doctor")(doctor.doctor)
app.command("import-legacy")(import_legacy.import_legacy)


def main() -> None:
    """The entry point of the installed command."""
    try:
        app()
    except Exception as error:
        sentence = sentence_for(error)
        if sentence is None:
            raise
        fail(sentence)
        sys.exit(1)
