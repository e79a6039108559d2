"""What a kombu message means to a fair queue: its id, its lane, its priority, and the text that is stored.

Pure: no Redis here. A producer says by headers where a message belongs (`apply_async(..., headers={...})`):

``tenant_id``  the lane; without it the lane ``-``
``flow``       the flow inside the lane; without it the name of the task
``lane``       ``{"weight", "cap", "rate", "burst", "paused", "version"}``, each optional: the lane's configuration as
               the publisher knows it. It is taken over only by a lane that has none as new (see ``configure`` in
               ``lanes.py``), which restores a lane after Redis lost its data

The id is Celery's task id. A retry by `Task.retry` has the same task id and is published while the first message is
still in hand: it is a message of its own, ``<id>#<number of the retry>``.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kombu.utils.json import JSONEncoder, object_hook

Raw = dict[str, Any]
"""A message as kombu's virtual transports pass it: body, headers, properties, content-type, content-encoding."""

NONCE = "publish_nonce"
"""The property that marks one publish over all its tries; kombu hands the same properties to each try."""

MAX_NAME = 200
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_encode = json.JSONEncoder(separators=(",", ":"), default=JSONEncoder().default).encode


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message on its way into its lane."""

    id: str
    tenant: str
    flow: str
    priority: int
    nonce: str
    lane: str
    payload: str

    @property
    def entry(self) -> str:
        """As it is stored (``library.lua``)."""
        return f"1\x1f{self.tenant}\x1f{self.flow}\x1f{self.priority}\x1f0\x1f{self.nonce}\n{self.payload}"

    def posted(self, *, again: bool = False) -> str:
        """As it is put into the inbox."""
        return f"1\x1f{self.id}\x1f{'1' if again else ''}\x1f{self.lane}\n{self.entry}"


def name(value: object) -> str:
    """A tenant, flow or id as it appears in key names and entries: no control characters, at most 200 characters, never
    empty."""
    return _CONTROL.sub("?", str(value))[:MAX_NAME] or "-"


def lane_words(lane: Mapping[str, Any] | None) -> str:
    """The configuration as the scripts read it: ``version weight cap rate burst``, ``-`` for what is not said, and a
    sixth word 1 or 0 when it says whether the lane is paused.

    Raises:
        ValueError: a value that is no number, or out of its range.
    """
    if not lane:
        return ""
    words = [str(int(lane.get("version") or 0))]
    for key, minimum in (("weight", 0.0), ("cap", -1.0), ("rate", -1.0), ("burst", 0.0)):
        value = lane.get(key)
        if value is None:
            words.append("-")
        elif not minimum < float(value) < 1e9:
            raise ValueError(f"{key} of a lane is out of range: {value!r}")
        else:
            words.append(repr(float(value)))
    if lane.get("paused") is not None:
        words.append("1" if lane["paused"] else "0")
    return " ".join(words)


def seal(raw: Raw, priority: int) -> tuple[Envelope, bool]:
    """The envelope of a message that is being published, and whether this publish is being tried again.

    Marks the properties of `raw` with the nonce of this publish. Raises ValueError for a bad ``lane`` header.
    """
    headers, properties = raw.get("headers") or {}, raw["properties"]
    nonce = properties.pop(NONCE, None)
    again = nonce is not None
    if nonce is None:
        nonce = os.urandom(8).hex()
    message_id = str(headers.get("id") or properties.get("correlation_id") or properties.get("delivery_tag") or nonce)
    retries = headers.get("retries")
    envelope = Envelope(
        id=name(f"{message_id}#{retries}" if retries else message_id),
        tenant=name(headers.get("tenant_id") or "-"),
        flow=name(headers.get("flow") or headers.get("task") or "-"),
        priority=priority,
        nonce=nonce,
        lane=lane_words(headers.get("lane")),
        payload=_encode(_plain(raw)),
    )
    properties[NONCE] = nonce
    return envelope, again


def unseal(payload: bytes, *, tag: str, redelivered: bool) -> Raw:
    """The message out of what was stored, with the tag of this delivery.

    Raises ValueError, KeyError, TypeError or AttributeError for anything that is not a message.
    """
    hook = object_hook if b"__type__" in payload else None
    raw: Raw = json.loads(payload, object_hook=hook)
    properties = raw["properties"]
    properties["delivery_tag"] = tag
    info = properties.setdefault("delivery_info", {})
    if redelivered:
        info["redelivered"] = True
        raw["headers"]["redelivered"] = True
    return raw


def _plain(raw: Raw) -> Raw:
    """The message with its body as plain text where it is text: base64 costs a third more memory and time."""
    properties = raw["properties"]
    if properties.get("body_encoding") != "base64" or not isinstance(raw.get("body"), str):
        return raw
    if (raw.get("headers") or {}).get("compression"):
        return raw
    try:
        body = base64.b64decode(raw["body"]).decode()
    except ValueError:
        return raw
    return {**raw, "body": body, "properties": {**properties, "body_encoding": "utf-8"}}
