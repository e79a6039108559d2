"""What tests of polls share: a service with a list of orders, a source that does as it is told, and a poller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

import actions
from actions.http import GuardedClient
from engine.ports import HttpClient, Json, PollItem, PollResult, PollSource
from tests.outside_services import Answer, Received, Service, json_answer
from tests.trigger_parts import Parts, two_tenants
from triggers import SOURCES, Poller
from triggers.pollers import Result

TWIN = {"type": "poll", "source": "test.twin", "every": "10m"}


class ListService(Service):
    """``/orders`` is a JSON list, ``/feed`` the same as RSS, both newest first; ``?since=id`` leaves out older ones."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[int] = []
        self.validators = False

    def answer(self, request: Received) -> Answer:
        etag = f'"{len(self.ids)}"'
        if self.validators and request.headers.get("if-none-match") == etag:
            return Answer(304)
        since = int(request.query.get("since", ["0"])[0])
        listed = [number for number in reversed(self.ids) if number >= since]
        answer = self._feed(listed) if request.path == "/feed" else json_answer({"orders": list(map(_order, listed))})
        return Answer(answer.status, answer.body, {**answer.headers, **({"etag": etag} if self.validators else {})})

    @staticmethod
    def _feed(listed: Sequence[int]) -> Answer:
        items = "".join(
            f"<item><guid>tag:{number}</guid><title>Order {number}</title><link>/orders/{number}</link></item>"
            for number in listed
        )
        text = f'<?xml version="1.0"?><rss version="2.0"><channel><title>Orders</title>{items}</channel></rss>'
        return Answer(200, text.encode(), {"content-type": "application/rss+xml"})


def _order(number: int) -> dict[str, Json]:
    return {"id": number, "total": number * 10}


class Empty(BaseModel):
    pass


class Twin:
    """A source that lists what the test says, after doing what the test says."""

    name = "test.twin"
    summary = "For tests."
    input_model: type[BaseModel] = Empty

    def __init__(self) -> None:
        self.items: list[str] = []
        self.during: Callable[[], object] | None = None
        self.error: Exception | None = None
        self.polls = 0

    def poll(self, parameters: Any, cursor: Json, client: HttpClient) -> PollResult:
        self.polls += 1
        if self.during is not None:
            self.during()
        if self.error is not None:
            raise self.error
        return PollResult([PollItem(item, {"name": item}) for item in self.items], cursor)


@dataclass
class PollParts(Parts):
    """`Parts` with a service that can be polled, the twin, and the poller."""

    service: ListService = field(kw_only=True)
    client: GuardedClient = field(kw_only=True)
    twin: Twin = field(default_factory=Twin)

    def __post_init__(self) -> None:
        super().__post_init__()
        sources: dict[str, PollSource] = {**SOURCES, self.twin.name: self.twin}
        self.sources = sources
        self.poller = Poller(self.database, self.runs, self.client, sources=sources)

    def poll(self, workflow_id: str) -> Result:
        return self.poller.poll("a", workflow_id)

    def trigger(
        self, *, source: str = "http.json", parameters: Mapping[str, Json] | None = None, **options: Any
    ) -> dict[str, Any]:
        """A trigger that polls the service."""
        usual: dict[str, Json] = {"url": f"{self.service.url}/orders", "items": "orders", "newest_first": True}
        if source == "rss":
            usual = {"url": f"{self.service.url}/feed"}
        return {"type": "poll", "source": source, "every": "10m", "with": {**usual, **(parameters or {})}, **options}

    def started(self, workflow_id: str) -> list[str]:
        """The items that have runs, in the order of the runs."""
        return [run["input"]["item_id"] for run in self.runs_of(workflow_id)]


@contextmanager
def poll_parts_for(database_url: str) -> Iterator[PollParts]:
    registry = actions.build(allowed_networks=("127.0.0.0/8",))
    with two_tenants(database_url) as database, ListService() as service:
        yield PollParts(database, registry, service=service, client=registry.client)
    registry.client.close()
