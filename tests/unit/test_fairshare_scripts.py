"""How the operations are put together, without Redis."""

from __future__ import annotations

import re

from engine.fairshare.hands import INBOX
from engine.fairshare.scripts import Keys, operation, scripts, with_library

LIBRARY = """-- A library.

local base = KEYS[1]
local one, two = base .. '1', base .. '2'

-- Uses base.
local function first() return one end

local function second() return first() .. two end

local function unused() return 0 end
"""


def test_an_operation_gets_what_it_uses_and_what_that_uses_and_nothing_else() -> None:
    text = with_library(LIBRARY, "-- op: unused is only mentioned.\nreturn first()\n")
    assert "function first" in text
    assert "local base" in text
    assert "second" not in text
    assert "unused" not in text
    assert (
        text.index("local base") < text.index("local one") < text.index("function first") < text.index("return first")
    )


def test_what_is_rarely_reached_is_defined_only_there() -> None:
    text = with_library(LIBRARY, "if base then return 1 end\n-- rarely:\nreturn second()\n")
    before, _, after = text.partition("return 1 end")
    assert "function" not in before
    assert "function second" in after


def test_a_publish_writes_to_the_inbox_before_what_files_it_is_defined() -> None:
    text = scripts()["publish"].text
    begin = text[: text.index("return posted")]
    assert "RPUSH" in begin
    assert re.findall(r"local function (\w+)", begin) == ["ring"]


def test_both_sides_agree_on_when_the_inbox_is_full() -> None:
    assert f"local INBOX = {INBOX}\n" in scripts()["publish"].text


def test_the_text_of_an_operation_has_no_comment_that_redis_would_read_at_every_load() -> None:
    assert all("--" not in script.text for script in scripts().values())


def test_a_command_names_the_two_keys_of_its_queue() -> None:
    command = operation("claim", Keys.of("runs", "fl:"), "", 30.0, "t", 4)
    assert command == ("EVALSHA", scripts()["claim"].sha, 2, "fl:runs", "{fl:runs}:", "", 30.0, "t", 4)
