"""The command ``fairlane`` for tests: its entry point in this process, or the installed command in one of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cli

ROOT = Path(__file__).parents[1]
KEYS = {
    "FAIRLANE_SECRET_KEY": "s" * 48,
    "FAIRLANE_MASTER_KEYS": "k1:" + base64.b64encode(b"1" * 32).decode(),
}
DOWN = "redis://127.0.0.1:1/0"
"""A Redis that nobody serves."""


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class CommandLine:
    """Runs commands with these variables and no other of ours."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, **variables: str) -> Result:
        """Run it in this process. It must end as commands do, by an exit code."""
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, self.environment(variables), clear=True),
            patch.object(sys, "argv", ["fairlane", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code
            else:
                raise AssertionError("the entry point returned instead of exiting")
        return Result(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())

    def fine(self, *words: str, **variables: str) -> Result:
        """Run it; fails the test unless the exit code is 0."""
        result = self(*words, **variables)
        assert result.code == 0, result
        return result

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """The same in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", "import cli; cli.main()", *words],
            cwd=self.folder,
            env=self.environment({"PYTHONPATH": str(ROOT)}),
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FAIRLANE_")}
        ours = {"FAIRLANE_DATA_DIR": str(self.folder / ".fairlane"), "COLUMNS": "200"}
        return {**kept, **ours, **self.variables, **more}


def configured(folder: Path, database_url: str, redis_url: str) -> CommandLine:
    """A command line whose servers are these."""
    servers = {"FAIRLANE_DATABASE_URL": database_url, "FAIRLANE_REDIS_URL": redis_url}
    return CommandLine(folder, {**KEYS, **servers})
