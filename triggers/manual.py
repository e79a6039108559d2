"""The kind `manual`: runs are started by the API or the console only."""

from __future__ import annotations

from triggers.kinds import StartedFromOutside


class Manual(StartedFromOutside):
    type = "manual"
