"""docs/api.md is true: its examples are run from top to bottom, as a reader would, and its tables are compared."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from string import Template
from typing import Any, get_args

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from api.app import create_app
from api.openapi import CODES
from api.schemas_runs import WaitingReason
from tests.api_server import Api, Queue, running_api, services_for, settings_for

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text("utf-8")
EXAMPLES = re.compile(r"```sh\n(.*?)```\n(?:```json\n(.*?)```\n)?", re.DOTALL)
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def api(database_url: str, redis_url: str) -> Iterator[Api]:
    queue = Queue(redis_url)
    with running_api(services_for(settings_for(database_url, redis_url), queue)) as running:
        yield running
    queue.close()


class Reader:
    """Somebody who types what the page says, and uses what the answers say."""

    def __init__(self, api: Api) -> None:
        self.http = api.client()
        self.known = {"URL": api.url}
        self.asked: list[tuple[str, str]] = []

    def type(self, command: str) -> httpx.Response:
        """What ``curl`` would do."""
        line = Template(command.replace("\\\n", " ")).substitute(self.known)
        words = iter(shlex.split(line)[1:])
        method, url, headers, body = "", "", {}, None
        for word in words:
            if word == "-X":
                method = next(words)
            elif word == "-H":
                name, _, value = next(words).partition(":")
                headers[name] = value.strip()
            elif word in ("-d", "--json"):
                body = next(words)
                headers.setdefault("Content-Type", "application/json" if word == "--json" else "x-www-form-urlencoded")
            else:
                assert not word.startswith("-"), word
                url = word
        method = method or ("GET" if body is None else "POST")
        answer = self.http.request(method, url, headers=headers, content=body)
        self.asked.append((method, answer.request.url.path))
        self._learn(answer)
        return answer

    def _learn(self, answer: httpx.Response) -> None:
        if answer.is_error or not answer.headers.get("content-type", "").startswith("application/json"):
            return
        body = answer.json()
        found = {"TOKEN": body.get("token"), "RUN": body.get("run_id")}
        if "invite" in body:
            found = {"INVITE": body["invite"]["id"], "INVITE_TOKEN": body["token"]}
        if "secret" in body and "key" in body:
            found["KEY"] = body["key"]["id"]
        if body.get("items") and "user_id" in body["items"][-1]:
            found["MEMBER"] = body["items"][-1]["user_id"]
        match str(body.get("id", "")).partition("_")[0]:
            case "wf":
                first = self.known.setdefault("WORKFLOW", body["id"])
                found["OTHER_WORKFLOW"] = body["id"] if body["id"] != first else None
            case "cred":
                found["CREDENTIAL"] = body["id"]
        if "run" in body:
            found["WAITING_RUN"] = body["run"]["id"]
        if "tenant" in body and "token" in body:
            found["TENANT"] = self.known.get("TENANT", body["tenant"]["id"])
        self.known |= {name: value for name, value in found.items() if value is not None}


def alike(shown: Any, real: Any, place: str = "") -> None:
    """Same shape; same values, but for times and for what the page leaves open with dots."""
    if isinstance(shown, dict) and shown:
        assert isinstance(real, dict), place
        assert set(shown) == set(real), place
        for key, value in shown.items():
            alike(value, real[key], f"{place}/{key}")
    elif isinstance(shown, list) and shown:
        for number, value in enumerate(shown):
            alike(value, real[number], f"{place}/{number}")
    elif isinstance(shown, str) and shown.endswith("..."):
        assert str(real).startswith(shown.removesuffix("...")), place
    elif isinstance(shown, str) and re.match(r"\d{4}-\d\d-\d\dT.*Z$", shown):
        assert datetime.fromisoformat(real).utcoffset() is not None, place
        assert real.endswith("Z"), place
    elif shown not in ({}, []):
        assert shown == real, place


def test_the_examples_do_what_the_page_says(api: Api) -> None:
    reader = Reader(api)
    executed = ""
    for commands, shown in EXAMPLES.findall(PAGE):
        answer = None
        for command in re.split(r"^(?=curl )", commands, flags=re.MULTILINE)[1:]:
            if "weather_check" in command:
                data = {"service": "openweather", "data": {"api_key": "k" * 32}}
                headers = {"Authorization": f"Bearer {reader.known['TOKEN']}"}
                reader.http.post(f"{api.url}/api/credentials", json=data, headers=headers)
            answer = reader.type(command)
            expected = json.loads(shown).get("status") if shown else None
            assert answer.status_code == (expected if isinstance(expected, int) else answer.status_code)
            assert answer.is_success or isinstance(expected, int), f"{command}\n{answer.text}"
        assert answer is not None
        if shown:
            alike(json.loads(shown), answer.json())
        # Workers work meanwhile.
        if reader.known.get("RUN", "") != executed:
            executed = reader.known["RUN"]
            api.work(reader.known["TENANT"], executed)
    assert shown_everything(api, reader.asked) == set()


def shown_everything(api: Api, asked: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """The routes that no example used."""
    left = set()
    for route in iter_route_contexts(create_app(api.services).routes):
        pattern = re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", route.path or "") + "$")
        for method in (route.methods or set()) - {"HEAD"}:
            if not any(method == used and pattern.match(path) for used, path in asked):
                left.add((method, str(route.path)))
    return left - {("GET", "/api/docs"), ("GET", "/api/openapi.json")}


def test_the_signing_example_is_accepted(api: Api) -> None:
    person = api.person()
    workflow_id = person.workflow(trigger={"type": "webhook", "secret": SECRET})
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"URL": api.url, "WORKFLOW": workflow_id, "SECRET": SECRET}
    exec(code, names)
    run = person.http.get(f"/api/runs/{names['answer']['run_id']}").json()
    assert run["input"]["body"] == {"paid": True}


def table(title: str) -> list[list[str]]:
    """The rows of the table that has `title` as its first column."""
    rows = PAGE.split(f"\n| {title} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_codes_is_that_of_the_code() -> None:
    assert table("code") == [[f"`{code}`", str(status), meaning] for code, (status, meaning) in CODES.items()]


def test_every_reason_to_wait_is_explained() -> None:
    assert {row[0].strip("`") for row in table("reason")} == set(get_args(WaitingReason))
