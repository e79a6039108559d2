"""README.md and docs/operations.md hold what the code says: links, variables, the workflow, the benchmarks."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined
from typer.main import get_command

import actions
import cli
from engine.definition import parse
from engine.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
README, OPERATIONS = ROOT / "README.md", ROOT / "docs" / "operations.md"


def variable_rows() -> list[tuple[str, str, str]]:
    """The table of variables in docs/operations.md: name, default, description."""
    lines = re.findall(rf"^\| `({PREFIX}[A-Z_]+)` \|(.*)\|(.*)\|$", OPERATIONS.read_text("utf-8"), re.MULTILINE)
    return [(name, default.strip(), description.strip()) for name, default, description in lines]


def written(default: object) -> str:
    """A default as the table writes it."""
    if default is PydanticUndefined:
        return ""
    if not default:
        return "none"
    value = int(default.total_seconds()) if isinstance(default, timedelta) else default
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_the_table_of_variables_is_that_of_the_settings() -> None:
    assert variable_rows() == [
        (f"{PREFIX}{name.upper()}", written(field.default), field.description)
        for name, field in Settings.model_fields.items()
    ]


@pytest.mark.parametrize("page", [README, OPERATIONS], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_the_workflow_of_the_readme_is_without_fault_and_short() -> None:
    (document,) = re.findall(r"```yaml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    with closing(actions.build()) as registry:
        assert parse(document, actions=registry).name == "Weather to Slack"
    assert document.count("\n") <= 15


@pytest.mark.parametrize("page", [README, OPERATIONS], ids=lambda page: page.name)
def test_every_command_that_is_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    command = get_command(cli.app)
    assert hasattr(command, "list_commands")
    known = command.list_commands(None)
    assert set(re.findall(r"`fairlane ([a-z-]+)", text)) <= set(known)
    targets = re.findall(r"^([a-z%-]+):.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = {re.sub("^bench-.*", "bench-%", word) for word in re.findall(r"`?make ([a-z-]+)", text)}
    assert named <= set(targets)


def test_every_benchmark_that_make_runs_exists() -> None:
    (line,) = re.findall(r"^BENCHES := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    named = re.findall(r"make bench-([a-z-]+)", README.read_text("utf-8") + OPERATIONS.read_text("utf-8"))
    missing = [name for name in {*line.split(), *named} if not (ROOT / f"bench/{name.replace('-', '_')}.py").exists()]
    assert missing == []
