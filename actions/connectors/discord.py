"""`discord.message`: post to a Discord channel by its webhook.

Discord answers 204, or 200 with the message when the URL asks to wait. Its rate limit is a 429 whose JSON names the
wait more exactly than the header does. The webhook's URL is the secret: it never appears in a message.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from pydantic import Field

from actions.base import Connector, CredentialData, Input, SecretUrl, Text, object_schema, rebased
from actions.guard import parse_url
from actions.http import GuardedClient, Request
from actions.replies import MAX_RETRY_AFTER, excerpt, failure
from engine.ports import HttpReply, Json, StepContext

WEBHOOK_HOSTS = frozenset({"discord.com", "discordapp.com", "ptb.discord.com", "canary.discord.com"})
MAX_CONTENT = 2000


class DiscordInput(Input):
    content: Text = Field(min_length=1, max_length=MAX_CONTENT, description="The message, at most 2,000 characters.")


class DiscordCredential(CredentialData):
    webhook_url: SecretUrl


class DiscordMessage(Connector):
    name = "discord.message"
    summary = "Posts a message to a Discord channel by its webhook."
    service = "discord"
    credential_required = True
    credential_model = DiscordCredential
    input_model = DiscordInput
    output_schema = object_schema(
        {"ok": {"const": True}, "id": {"type": "string", "description": "Only when the webhook's URL has wait=true."}},
        required=("ok",),
    )

    def __init__(self, client: GuardedClient, *, base: str | None = None) -> None:
        super().__init__(client)
        self._base = base

    def run(self, context: StepContext, parameters: DiscordInput) -> Json:
        given = self.secret(context, DiscordCredential).webhook_url.get_secret_value()
        url = rebased(str(parse_url(given)), hosts=WEBHOOK_HOSTS, base=self._base)
        content = json.dumps({"content": parameters.content}).encode()
        headers = {"content-type": "application/json"}
        reply = self.call(context, Request("POST", url, headers, content, credential=True))
        answer = _mapping(reply)
        if not 200 <= reply.status < 300:
            detail = str(answer.get("message") or excerpt(reply.body, characters=100))
            raise failure(reply, subject="Discord", detail=detail, after=_wait(answer))
        return {"ok": True, "id": answer["id"]} if isinstance(answer.get("id"), str) else {"ok": True}


def _mapping(reply: HttpReply) -> dict[str, Any]:
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _wait(answer: dict[str, Any]) -> timedelta | None:
    """``retry_after`` of a rate-limit answer: seconds, with fractions."""
    seconds = answer.get("retry_after")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        return None
    return min(timedelta(seconds=min(seconds, MAX_RETRY_AFTER.total_seconds())), MAX_RETRY_AFTER)
