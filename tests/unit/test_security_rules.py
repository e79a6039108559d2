"""What our code must never do, whoever writes it, and that docs/security.md names tests that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("engine", "triggers", "actions", "exporters", "api", "cli", "embedded", "migrations")
FILES = sorted([path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + [ROOT / "tasks.py"])
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")

CODE_OUT_OF_TEXT = {"eval", "exec", "compile", "__import__"}
UNSAFE_FORMATS = {"pickle", "marshal", "shelve", "dill", "jsonpickle", "jinja2"}
OUTBOUND = re.compile(
    r"(requests|aiohttp|urllib3|http\.client)\.|urllib\.request\.urlopen|httpx\.([a-z]|Client|AsyncClient)"
)
GUARDED = {"actions/http.py", "actions/guard.py", "actions/network.py"}
OWN_LOOPBACK = {"cli/up.py"}
"""Asks the API that it has just started whether it is ready."""
SAFE_YAML = {"engine/document_text.py"}
"""Loads with a narrowed safe loader of its own."""
CHANCE = {"random"}
ONLY_JITTER = {"engine/perform.py", "engine/retry.py"}
"""Files that need chance and no secret: when to try again."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def calls(tree: ast.AST) -> Iterator[str]:
    """Names that are called: ``f(...)`` and ``x.f(...)`` as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_does_what_ours_never_do(path: Path) -> None:
    name, tree = str(path.relative_to(ROOT)), ast.parse(path.read_text("utf-8"))
    imported, called = set(imports(tree)), set(calls(tree))
    assert not called & CODE_OUT_OF_TEXT, "runs text as code"
    assert not imported & UNSAFE_FORMATS, "reads a format that runs code, or renders tenants' text with Jinja"
    assert not {"yaml.unsafe_load", "os.system", "subprocess.getoutput"} & called
    assert name in SAFE_YAML or "yaml.load" not in called
    outbound = {call for call in called if OUTBOUND.match(call)}
    assert name in GUARDED | OWN_LOOPBACK or not outbound, "calls the outside past the guard"
    assert name in ONLY_JITTER or not imported & CHANCE, "secrets come from `secrets`"
    assert "shell=True" not in ast.unparse(tree)


def test_celery_takes_json_and_nothing_else() -> None:
    tree = ast.parse((ROOT / "celeryconfig.py").read_text("utf-8"))
    assigned = {
        ast.unparse(node.targets[0]): ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }
    assert assigned["task_serializer"] == "'json'"
    assert assigned["accept_content"] == assigned["result_accept_content"] == "['json']"


def test_the_page_has_all_thirty_checks_each_with_a_test_or_a_word_that_it_is_to_come() -> None:
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|([^|]*)\|([^|]*)\|$", PAGE, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 31))
    for number, _check, _control, shown in rows:
        assert "`test_" in shown or "To come:" in shown, number


def test_every_test_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", PAGE))
    assert len(named) > 40
    missing = []
    for file, test in sorted(named):
        found = list((ROOT / "tests").rglob(f"{file}.py"))
        if not any(re.search(rf"^def {test}\b", path.read_text("utf-8"), re.MULTILINE) for path in found):
            missing.append(f"{file}::{test}")
    assert missing == []
