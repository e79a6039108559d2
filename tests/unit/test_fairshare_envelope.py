"""What a message means to a fair queue, without Redis."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.fairshare.envelope import NONCE, Raw, lane_words, name, seal, unseal
from engine.fairshare.scripts import Keys, scripts


def raw(**headers: Any) -> Raw:
    return {
        "body": "W1tdLCB7fSwge31d",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": "task-1", "task": "tasks.run", "retries": 0, **headers},
        "properties": {"delivery_tag": "d", "body_encoding": "base64", "delivery_info": {}, "priority": 0},
    }


def test_headers_give_the_lane_and_the_task_name_is_the_default_flow() -> None:
    sealed, again = seal(raw(tenant_id="acme", flow="wf_1"), 3)
    assert (sealed.id, sealed.tenant, sealed.flow, sealed.priority, again) == ("task-1", "acme", "wf_1", 3, False)
    plain, _ = seal(raw(), 0)
    assert (plain.tenant, plain.flow) == ("-", "tasks.run")


def test_a_message_that_celery_does_not_know_has_an_id_too() -> None:
    message = raw(id=None)
    message["properties"]["correlation_id"] = "c"
    assert seal(message, 0)[0].id == "c"
    assert seal({**raw(id=None)}, 0)[0].id == "d"


def test_without_any_id_a_publish_that_is_tried_again_is_still_one_message() -> None:
    message = raw(id=None)
    del message["properties"]["delivery_tag"]
    assert seal(message, 0)[0].id == seal(message, 0)[0].id


def test_no_field_of_what_is_posted_can_pass_for_another() -> None:
    sealed, _ = seal(raw(id="a\x1fb", tenant_id="c\nd", flow="e\x1ff"), 3)
    head, _, entry = sealed.posted(again=True).partition("\n")
    assert head.split("\x1f") == ["1", "a?b", "1", ""]
    assert entry == sealed.entry
    first, _, payload = entry.partition("\n")
    assert first.split("\x1f") == ["1", "c?d", "e?f", "3", "0", sealed.nonce]
    assert payload == sealed.payload


def test_a_retry_is_a_message_of_its_own() -> None:
    assert seal(raw(retries=2), 0)[0].id == "task-1#2"


def test_the_second_try_of_one_publish_has_the_nonce_of_the_first() -> None:
    message = raw()
    first, again = seal(message, 0)
    assert not again
    message["properties"]["delivery_tag"] = "another"  # kombu gives each try a new one
    second, again = seal(message, 0)
    assert again
    assert second.nonce == first.nonce
    assert NONCE not in json.loads(second.payload)["properties"]


def test_a_text_body_is_stored_as_text_and_comes_out_as_it_was() -> None:
    sealed, _ = seal(raw(), 0)
    assert json.loads(sealed.payload)["body"] == "[[], {}, {}]"
    message = unseal(sealed.payload.encode(), tag="t1", redelivered=True)
    assert message["properties"]["delivery_tag"] == "t1"
    assert message["properties"]["delivery_info"]["redelivered"] is True
    assert message["headers"]["redelivered"] is True


@pytest.mark.parametrize("body", ["gICA", "not base64!"])
def test_a_binary_body_stays_encoded(body: str) -> None:
    message = raw()
    message["body"] = body
    stored = json.loads(seal(message, 0)[0].payload)
    assert (stored["body"], stored["properties"]["body_encoding"]) == (body, "base64")


def test_names_cannot_break_out_of_their_keys() -> None:
    assert name("a\x1fb\nc") == "a?b?c"
    assert name("") == "-"
    assert len(name("x" * 999)) == 200


def test_a_lane_header_becomes_words_and_says_what_is_wrong() -> None:
    assert lane_words(None) == ""
    assert lane_words({"weight": 2, "cap": 5}) == "0 2.0 5.0 - -"
    assert lane_words({"version": 7, "rate": 0, "burst": 3}) == "7 - - 0.0 3.0"
    for bad in ({"weight": 0}, {"weight": -1}, {"cap": -1}, {"rate": float("nan")}, {"burst": 0}):
        with pytest.raises(ValueError, match="out of range"):
            lane_words(bad)


def test_all_keys_of_a_queue_share_one_hash_tag() -> None:
    assert Keys.of("runs", "fl:") == Keys("fl:runs", "{fl:runs}:", "{fl:runs}:inbox")


def test_every_operation_says_what_it_does_and_what_it_returns() -> None:
    from importlib import resources

    for name_ in scripts():
        text = resources.files("engine.fairshare").joinpath("lua", f"{name_}.lua").read_text()
        assert text.startswith(f"-- {name_}: "), name_
        assert "-- Returns" in text, name_
        assert "-- ARGV" in text, name_
        assert "'KEYS'" not in text, name_
