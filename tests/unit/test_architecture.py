"""The laws of the layout (docs/architecture.md): who may import whom, and how long files and functions may be."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "triggers", "actions", "exporters", "api", "cli", "embedded", "migrations")
OURS = {*ROOMS, "tasks", "celeryconfig"}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60

PURE = {
    "answers", "cel_child", "cel_pool", "cel_source", "cel_wire", "common_passwords", "definition", "definition_checks",
    "definition_faults", "document_text", "durations", "errors", "expressions", "graph", "ids", "invoice",
    "invoice_page", "legacy_form", "passwords", "permissions", "ports", "redaction", "resume_links", "retry", "states",
    "step", "templates", "turns", "workflow",
}  # fmt: skip
IO = [
    "settings", "logs", "metrics", "tracing", "sql", "db", "schema", "models_usage", "models_metrics", "models",
    "repository", "vault",
]  # fmt: skip
SERVICES: dict[str, set[str]] = {
    "execution": set(),
    "heartbeat": {"execution"},
    "patience": {"execution"},
    "tools": {"runs"},
    "outcomes": {"execution"},
    "children": {"execution", "outcomes", "patience", "runs", "tools"},
    "control": {"children", "execution", "outcomes", "tools"},
    "intent": {"execution", "outcomes", "patience", "tools"},
    "perform": {"children", "execution", "intent", "outcomes", "tools"},
    "pipeline": {"control", "execution", "intent", "outcomes", "perform", "tools"},
    "progress": {"execution"},
    "checkpoints": {"execution", "patience", "runs", "tools"},
    "concurrency": {"checkpoints", "execution", "patience", "tools"},
    "walk": {"checkpoints", "control", "execution", "outcomes", "pipeline", "progress", "tools", "usage"},
    "executor": {
        "checkpoints",
        "concurrency",
        "execution",
        "heartbeat",
        "progress",
        "runs",
        "tools",
        "walk",
        "quotas",
        "usage",
    },
    "usage": set(),
    "quotas": {"usage"},
    "runs": {"quotas"},
    "sweeper": {"runs"},
    "held": {"quotas", "runs", "usage"},
    "retention": set(),
    "notices": {"audit", "quotas", "usage"},
    "notice_delivery": {"audit", "mail", "notices", "usage"},
    "allowances": {"usage"},
    "workflows": {"allowances", "runs"},
    "audit": set(),
    "tallies": set(),
    "breaker": set(),
    "replay": {"runs"},
    "live": set(),
    "tenancy": {"audit"},
    "members": {"allowances", "audit", "tenancy"},
    "invites": {"allowances", "audit", "members", "tenancy"},
    "api_keys": {"audit", "tenancy"},
    "rollout": {"audit"},
    "mail": set(),
    "leaving": {"audit"},
    "archive": {"audit"},
    "moving": {"audit", "workflows"},
    "connections": {"allowances"},
    "plans": {"audit"},
    "billing": {"audit"},
    "metering": {"audit"},
    "dry_run": {"execution", "pipeline"},
}
"""A service, and the other services that it may import; all may import PURE and I/O."""
LEAF = {"redis", "kombu", "engine.metrics"}
PURE_LIBRARIES = {"pydantic", "cel_expr_python", "uuid_utils", "yaml", "cronsim", "tenacity", "pwdlib", "bcrypt"}

ALLOWED: dict[str, set[str]] = {
    "triggers": {"engine"},
    "actions": {"engine.ports", "engine.errors", "engine.expressions"},
    "exporters": {"engine.ports", "engine.errors"},
    "api": {"engine", "triggers", "actions", "tasks", "migrations"},
    "cli": {"engine", "triggers", "actions", "exporters", "tasks", "migrations", "embedded", "celeryconfig"},
    "embedded": {"engine.settings", "engine.errors"},
    "migrations": set(),
    "migrations.legacy": {"engine", "migrations"},
    "tasks": {"engine", "triggers", "actions", "exporters"},
    "celeryconfig": {"engine"},
}
"""A room outside the engine, and what it may import of ours."""


def _files() -> list[Path]:
    folders = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted([*folders, ROOT / "tasks.py", ROOT / "celeryconfig.py"])


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at the top or inside functions; `from a import b` counts as a.b of ours."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ROOMS:
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in allowed)


def _allowed_in_engine(module: str) -> set[str]:
    part = module.partition(".")[2].partition(".")[0]
    pure = {f"engine.{name}" for name in PURE}
    below_io = {f"engine.{name}" for name in IO}
    if part == "":
        return set()
    if part == "fairshare":
        return LEAF | {"engine.fairshare"}
    if part in PURE:
        return pure
    if part in IO:
        return pure | {f"engine.{name}" for name in IO[: IO.index(part) + 1]}
    assert part in SERVICES, f"{module} stands in no room of the table; give it a line here and in docs/architecture.md"
    return pure | below_io | {f"engine.{name}" for name in (*SERVICES[part], part)}


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    module = _module(path)
    room = module.split(".")[0]
    room = "migrations.legacy" if _within(module, {"migrations.legacy"}) else room
    allowed = _allowed_in_engine(module) if room == "engine" else ALLOWED[room] | {room}
    ours = {name for name in _imports(path) if name.split(".")[0] in OURS}
    assert {name for name in ours if not _within(name, allowed)} == set()


@pytest.mark.parametrize("path", [p for p in _files() if _module(p).split(".")[1:2] and
                                  _module(p).split(".")[0] == "engine" and _module(p).split(".")[1] in PURE],
                         ids=_module)  # fmt: skip
def test_a_pure_file_needs_no_server_and_no_framework(path: Path) -> None:
    outside = {name.split(".")[0] for name in _imports(path)} - set(sys.stdlib_module_names) - OURS
    assert outside <= PURE_LIBRARIES


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_every_file_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
