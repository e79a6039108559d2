"""Ids that others chose, in a form that fits an index: the keys by which repetitions are recognised."""

from __future__ import annotations

import hashlib

MAX_ID_LENGTH = 200


def short(foreign_id: str) -> str:
    """The id itself; its hash when it is longer than `MAX_ID_LENGTH`, empty, or holds what cannot be printed."""
    if 0 < len(foreign_id) <= MAX_ID_LENGTH and foreign_id.isprintable():
        return foreign_id
    return f"sha256:{hashlib.sha256(foreign_id.encode('utf-8', 'surrogatepass')).hexdigest()}"
