"""The parts of the engine that the API stands on, as `tasks.services` puts them together."""

from __future__ import annotations

from typing import Protocol

from actions import Registry
from engine.db import Database
from engine.expressions import Evaluator
from engine.fairshare import Lanes
from engine.resume_links import ResumeLinks
from engine.runs import Runs
from engine.settings import Settings
from engine.vault import Vault
from engine.workflows import Workflows
from triggers import Receiver


class Services(Protocol):
    """What the API needs of `tasks.Services`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def database(self) -> Database: ...
    @property
    def vault(self) -> Vault: ...
    @property
    def actions(self) -> Registry: ...
    @property
    def evaluator(self) -> Evaluator: ...
    @property
    def runs(self) -> Runs: ...
    @property
    def links(self) -> ResumeLinks: ...
    @property
    def workflows(self) -> Workflows: ...
    @property
    def receiver(self) -> Receiver: ...
    @property
    def lanes(self) -> Lanes: ...
