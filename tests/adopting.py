"""Adopting databases of the multi-user system, the worst of them, and looking at what became of them."""

from __future__ import annotations

from typing import Any

import psycopg

import actions
from engine.vault import MasterKeyRing, Vault
from migrations.legacy import adopt
from migrations.legacy.findings import Conversion
from migrations.legacy.road import Parts
from tests.legacy_database import KEY, Legacy, encrypt
from triggers import KINDS

LONG_AGO = "2026-01-12 10:11:12.123456789-05:00"


def parts(old_key: bytes | None = KEY) -> Parts:
    return Parts(Vault(MasterKeyRing({"k": b"1" * 32})), actions.build(), KINDS, old_key)


def adopted_now(url: str, old_key: bytes | None = KEY) -> Conversion:
    return adopt.adopt(url, parts(old_key), lambda *_: None)


def taken_back(url: str, *, discard_new: bool = False) -> None:
    adopt.take_back(url, discard_new=discard_new, progress=lambda *_: None)


def rows_of(url: str, query: str, *values: Any) -> list[Any]:
    with psycopg.connect(url.replace("+psycopg", ""), options="-c timezone=UTC -c datestyle=ISO") as connection:
        return connection.execute(query, values).fetchall()


def do(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        connection.execute(statement)


def dirty() -> tuple[Legacy, dict[str, str]]:
    """A database with every kind of dirt that is known of, and the ids of its rows by what is wrong with them."""
    legacy = Legacy()
    ids = {"user": legacy.user("O'Brien+tag@Exämple.com"), "twin": legacy.user("o'brien+TAG@exämple.com")}
    user = ids["user"]
    legacy.user("idle@example.com", created_at="no time at all")
    ids["no email"], ids["blank"] = legacy.user(""), legacy.user("bob@example.com ")
    ids["first"] = legacy.credential(user, "slack", "http://old/", created_at="2026-01-01 00:00:00")
    ids["second"] = legacy.credential(user, "slack", "http://new/", created_at="2026-01-02 00:00:00")
    ids["named"] = legacy.credential(user, "slack 2", "of a service with an odd name")
    ids["broken"] = legacy.credential(user, "openweather", "", encrypted_key=encrypt("x", b"2" * 32))
    ids["garbage"] = legacy.credential(user, "discord", "", encrypted_key="!!")
    ids["orphan credential"] = legacy.credential("nobody", "slack", "x")
    hook = {"slack_message": "{{a}}"}
    ids["good"] = legacy.workflow(user, "webhook", "slack_message", hook)
    ids["weather"] = legacy.workflow(user, "schedule", "weather_check", "", last_executed_at="2099-01-01 00:00:00")
    for what, interval in {"zero": 0, "in words": "often", "in quotes": "30", "half-hourly": 30}.items():
        ids[what] = legacy.workflow(user, "schedule", "slack_message", hook | {"interval": interval})
    ids["unknown"] = legacy.workflow(user, "webhook", "twilio_sms", {"to": "1"})
    ids["no json"] = legacy.workflow(user, "webhook", "slack_message", "{broken")
    ids["huge"] = legacy.workflow(user, "webhook", "slack_message", {"slack_message": "x" * 300_000})
    ids["no object"] = legacy.workflow(user, "schedule", "slack_message", "[1]")
    ids["surrogate"] = legacy.workflow(user, "webhook", "slack_message", '{"slack_message": "\\ud800 \\u0000"}')
    ids["odd trigger"] = legacy.workflow(user, "carrier pigeon", "slack_message", hook)
    ids["nameless"] = legacy.workflow(user, "webhook", "slack_message", hook, name=" ", is_active=7)
    ids["off"] = legacy.workflow(user, "schedule", "slack_message", hook, is_active=0)
    ids["orphan"] = legacy.workflow("nobody", "webhook", "slack_message", hook)
    ids["log of an orphan"] = legacy.log(ids["orphan"])
    ids["log of nothing"] = legacy.log("gone")
    ids["log of unknown"] = legacy.log(ids["unknown"])
    ids["future log"] = legacy.log(ids["good"], executed_at="2099-01-12T10:11:12Z")
    ids["zoned log"] = legacy.log(ids["good"], executed_at=LONG_AGO)
    ids["timeless log"] = legacy.log(ids["good"], executed_at="when it rained")
    ids["odd log"] = legacy.log(ids["good"], "pending", message=None)
    return legacy, ids
