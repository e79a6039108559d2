"""README.md and docs/ lead where they say and hold what the code says: variables, the workflow, the benchmarks."""

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
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]


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


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What can stand behind the # of a link to the page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    missing = []
    for name, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        target = page.parent / name if name else page
        if "://" not in name and not (target.exists() and (not anchor or anchor in anchors(target))):
            missing.append(f"{name}#{anchor}")
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
