"""Files that only their owner may read."""

from __future__ import annotations

from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Replace `path` at once, mode 0600: no reader ever sees half of it, no other user any of it."""
    draft = path.with_name(f"{path.name}.new")
    draft.touch(mode=0o600)
    draft.chmod(0o600)
    draft.write_text(text if text.endswith("\n") else f"{text}\n")
    draft.replace(path)
