"""Identifiers: a prefix that tells the kind, then a UUIDv7, so that ids sort by the time they were made.

Legacy ids stay as they were; nothing may parse an id beyond looking at its prefix.
"""

from __future__ import annotations

import uuid_utils


def new_id(kind: str) -> str:
    """A fresh id such as ``run_0193...``: `kind`, an underscore, 32 hex digits."""
    return f"{kind}_{uuid_utils.uuid7().hex}"
