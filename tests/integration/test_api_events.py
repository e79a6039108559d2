"""Watching runs: what comes, that nothing is missed or doubled by whoever comes back, and what it costs others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import migrations
from embedded.postgres import PostgresServer
from engine import live
from engine.live import Cursor, Live
from tests.api_server import ECHO, Api, Person, running_api, services_for, settings_for
from tests.command_line import DOWN
from tests.installation import wait_for

ASK = {"id": "ask", "wait": {"approval": {}}}
FORTY = {"items": str(list(range(40))), "parallel": 8}
EACH = {"id": "each", "action": "debug.echo", "for_each": FORTY, "with": {"n": "{{ item }}"}}


@dataclass(frozen=True)
class Got:
    """One event as it came over the wire."""

    id: str
    kind: str
    data: dict[str, Any]

    @property
    def status(self) -> str | None:
        return self.data["status"] if self.kind == "status" else None


def parsed(lines: Iterator[str]) -> Iterator[Got]:
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            yield Got(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


@contextmanager
def stream(client: httpx.Client, run_id: str, after: str | None = None) -> Iterator[Iterator[Got]]:
    headers = {} if after is None else {"Last-Event-ID": after}
    with client.stream("GET", f"/api/runs/{run_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            yield iter(())
            return
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parsed(answer.iter_lines())


def whole(client: httpx.Client, run_id: str, after: str | None = None) -> list[Got]:
    with stream(client, run_id, after) as events:
        return list(events)


def in_pieces(client: httpx.Client, run_id: str, size: int) -> list[Got]:
    """Everything, by somebody who loses the connection after every `size` events."""
    found: list[Got] = []
    while True:
        with stream(client, run_id, found[-1].id if found else None) as events:
            piece = [event for _, event in zip(range(size), events, strict=False)]
        found += piece
        if not piece or piece[-1].status in ("succeeded", "failed", "cancelled"):
            return found


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    """Without any Redis: watching needs none."""
    with running_api(services_for(settings_for(database_url, DOWN))) as running:
        yield running


@pytest.fixture
def person(api: Api) -> Person:
    return api.person()


def manual(person: Person, *steps: dict[str, Any]) -> str:
    return person.run(person.workflow(*steps, trigger={"type": "manual"}))


def messages(events: list[Got]) -> list[str]:
    return [event.data["message"] for event in events if event.kind == "log"]


def logged(person: Person, run_id: str) -> list[str]:
    items = person.http.get(f"/api/runs/{run_id}/logs", params={"limit": 200}).json()["items"]
    return [line["message"] for line in items]


def test_a_run_that_has_ended_is_told_whole_and_the_stream_ends(api: Api, person: Person) -> None:
    run_id = manual(person, ECHO)
    api.work(person.tenant_id, run_id)
    events = whole(person.http, run_id)
    assert messages(events) == logged(person, run_id)
    (step,) = [event.data for event in events if event.kind == "step"]
    assert (step["id"], step["status"], step["output"]) == ("echo", "succeeded", {"text": "hello"})
    assert [event.status for event in events][-1] == "succeeded"
    assert events[-1].data["finished_at"].endswith("Z")


def test_events_come_while_the_run_goes_on_and_end_with_it(api: Api, person: Person) -> None:
    run_id = manual(person, ECHO, ASK, {**ECHO, "id": "after"})
    seen: list[str] = []
    with stream(person.http, run_id) as events:
        for event in events:
            if event.status == "queued" and "waiting" not in seen:
                api.work(person.tenant_id, run_id)
            elif event.status == "waiting":
                assert event.data["wait_reason"] == "approval"
                assert person.http.post(f"/api/runs/{run_id}/resume").status_code == 200
                api.work(person.tenant_id, run_id)
            seen.append(event.status or f"{event.kind}:{event.data.get('id') or event.data.get('step')}")
    statuses = [one for one in seen if ":" not in one]
    assert (statuses[0], statuses[-1]) == ("queued", "succeeded")
    assert "waiting" in statuses
    steps = [one for one in seen if one.startswith("step:")]
    assert steps == ["step:echo", "step:ask", "step:ask", "step:after"]


def test_an_event_comes_soon_after_it_happened(api: Api, person: Person) -> None:
    run_id = manual(person, ASK)
    api.work(person.tenant_id, run_id)
    with stream(person.http, run_id) as events:
        assert next(event for event in events if event.status == "waiting")
        began = time.monotonic()
        person.http.post(f"/api/runs/{run_id}/cancel")
        assert next(event for event in events if event.status).status == "cancelled"
        assert time.monotonic() - began < live.INTERVAL + 2


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_who_comes_back_misses_nothing_and_gets_nothing_twice(api: Api, person: Person, size: int) -> None:
    run_id = manual(person, ECHO, EACH)
    api.work(person.tenant_id, run_id)
    assert in_pieces(person.http, run_id, size) == whole(person.http, run_id)


@pytest.mark.parametrize("size", [1, 5])
def test_nor_while_the_run_goes_on_in_parallel(api: Api, person: Person, size: int) -> None:
    run_id = manual(person, {**EACH, "action": "debug.sleep", "with": {"seconds": 0.02}})
    with ThreadPoolExecutor(1) as worker:
        working = worker.submit(api.work, person.tenant_id, run_id)
        events = in_pieces(person.http, run_id, size)
        working.result()
    assert len({event.id for event in events}) == len(events)
    assert messages(events) == logged(person, run_id)
    done = [
        (event.data["id"], event.data["item"]) for event in events if event.kind == "step" and event.data["finished_at"]
    ]
    assert sorted(done, key=str) == sorted([("each", None), *(("each", str(n)) for n in range(40))], key=str)


def test_after_the_end_there_is_nothing_to_come_back_for(api: Api, person: Person) -> None:
    run_id = manual(person, ECHO)
    api.work(person.tenant_id, run_id)
    last = whole(person.http, run_id)[-1].id
    answer = person.http.get(f"/api/runs/{run_id}/events", headers={"Last-Event-ID": last})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("wrong", ["x", "1.2.3", "1.2.3.flying", f"{2**63}.0.0.queued", "1.2.3.queued.5"])
def test_an_id_that_is_none_of_ours_is_refused(person: Person, wrong: str) -> None:
    run_id = manual(person, ECHO)
    answer = person.http.get(f"/api/runs/{run_id}/events", headers={"Last-Event-ID": wrong})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/Last-Event-ID")


def test_a_replay_shows_what_it_keeps_as_steps_that_are_done(api: Api, person: Person) -> None:
    run_id = manual(person, ECHO, {"id": "bad", "action": "debug.fail", "with": {"message": "no"}})
    api.work(person.tenant_id, run_id)
    replay = person.http.post(f"/api/runs/{run_id}/replay", json={"from": "failed"}).json()["id"]
    api.work(person.tenant_id, replay)
    steps = [event.data["id"] for event in whole(person.http, replay) if event.kind == "step"]
    assert steps == ["echo", "bad"]


def test_a_hundred_listeners_take_no_thread_from_anybody(api: Api, person: Person) -> None:
    run_id = manual(person, ASK)
    api.work(person.tenant_id, run_id)
    ready = threading.Barrier(101)

    def listen(_: int) -> str | None:
        with api.client(person.token) as client, stream(client, run_id) as events:
            assert any(event.status == "waiting" for event in events)
            ready.wait(60)
            return [event.status for event in events][-1]

    with ThreadPoolExecutor(100) as listeners:
        streams = [listeners.submit(listen, n) for n in range(100)]
        ready.wait(60)
        began = time.monotonic()
        for _ in range(20):
            assert person.http.get(f"/api/runs/{run_id}").status_code == 200
        assert time.monotonic() - began < 10
        person.http.post(f"/api/runs/{run_id}/cancel")
        assert {one.result() for one in streams} == {"cancelled"}


def test_more_listeners_than_may_be_are_told_to_come_later_and_leave_room_for_other_organizations(
    api: Api, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = api.person()
    monkeypatch.setattr(live, "MAX_LISTENERS", 5)
    run_id = manual(person, ECHO)
    with stream(person.http, run_id) as events:
        next(events)
        answer = person.http.get(f"/api/runs/{run_id}/events")
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
        with stream(other.http, manual(other, ECHO)) as theirs:
            assert next(theirs).status == "queued"


def test_while_postgres_is_down_nothing_comes_and_then_the_rest_does(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "postgres", fast=True).start()
    migrations.upgrade(server.url)
    try:
        with running_api(services_for(settings_for(server.url, DOWN))) as api:
            person = api.person()
            run_id = manual(person, ASK)
            with stream(person.http, run_id) as events:
                assert next(events).status == "queued"
                server.kill()
                server.start()
                api.work(person.tenant_id, run_id)
                assert next(event for event in events if event.status == "waiting")
                with api.client(person.token) as other:
                    wait_for(lambda: other.post(f"/api/runs/{run_id}/cancel").status_code == 200, "the API to be back")
                assert list(events)[-1].status == "cancelled"
    finally:
        server.stop()


def test_who_hears_nothing_for_a_while_is_told_so_and_who_leaves_is_forgotten(api: Api, person: Person) -> None:
    run_id = manual(person, ASK)

    async def listen() -> None:
        watching = Live(api.services.database, interval=0.01, quiet=0.05)
        found = watching.follow(person.tenant_id, run_id, Cursor())
        event = await anext(found)
        assert event is not None
        assert event.data["status"] == "queued"
        while await anext(found) is not None:
            pass
        assert watching.listeners == 1
        await found.aclose()  # type: ignore[attr-defined]
        assert watching.listeners == 0
        watching.close()

    asyncio.run(asyncio.wait_for(listen(), 30))
