"""Being an ordinary user in a test that root runs."""

from __future__ import annotations

import os
import shutil
import subprocess

NOBODY = 65534
_POWER = "-all,+dac_read_search"
"""Interpreter and checkout may lie in root's home: reading everything is the one power that this user keeps.

With the securebit also where a program asks ``access(2)``, which forgets the power otherwise.
"""
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    "--securebits=+no_setuid_fixup",
    *(f"--inh-caps={_POWER}", f"--ambient-caps={_POWER}", f"--bounding-set={_POWER}"),
)
"""What to put before a command that this user shall run."""


def can_be_nobody() -> bool:
    """Whether this machine lets us."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    return subprocess.run([*AS_NOBODY, "true"], capture_output=True, check=False).returncode == 0
