"""Poll sources: what a trigger of the kind `poll` can look at. One file each, and its line in `SOURCES`.

A source fetches once and answers the items that it sees, oldest first, and a cursor that it is given back at the next
poll. It keeps nothing itself, deduplicates nothing and starts nothing: `triggers.pollers` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from engine.ports import PollSource
from triggers.sources.http_json import HttpJson
from triggers.sources.rss import Rss

__all__ = ["SOURCES"]

_BUILT_IN: tuple[PollSource, ...] = (HttpJson(), Rss())

SOURCES: Mapping[str, PollSource] = MappingProxyType({source.name: source for source in _BUILT_IN})
