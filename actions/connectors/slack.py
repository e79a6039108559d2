"""`slack.message`: post to Slack by an incoming webhook or a bot token.

The protocol is slack-sdk's; its transport is ours. `WebClient` and `WebhookClient` open their connections in one method
each (checked against slack-sdk 3.48), which is replaced here by the guarded client: a webhook URL is a tenant's input
like any other. The SDK's own retries are off, since the executor retries, and its logger is silent, since it writes
URLs that are secrets.

Slack's temporary refusals (429, 5xx, ``internal_error`` and its like) are `RetryLater`, with Slack's own wait; every
other refusal is `Fatal` with Slack's error name, such as ``channel_not_found``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias
from urllib.request import Request as UrllibRequest

from pydantic import Field, SecretStr, model_validator
from slack_sdk.errors import SlackApiError, SlackClientError
from slack_sdk.web import WebClient
from slack_sdk.webhook import WebhookClient, WebhookResponse

from actions.base import Connector, CredentialData, Input, SecretUrl, Text, object_schema, rebased
from actions.guard import parse_url
from actions.http import GuardedClient, Request
from actions.replies import excerpt, failure, retry_after
from engine.errors import Fatal, RetryLater
from engine.ports import HttpReply, Json, StepContext

API_BASE = "https://slack.com"
WEBHOOK_HOSTS = frozenset({"hooks.slack.com", "hooks.slack-gov.com"})
TEMPORARY = frozenset(
    {"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout"}
)

Send: TypeAlias = Callable[[Request], HttpReply]

_silent = logging.Logger("fairlane.slack_sdk", level=logging.CRITICAL + 1)


class SlackInput(Input):
    text: Text = Field(min_length=1, description="The message; with blocks, the text of the notification.")
    channel: Text | None = Field(default=None, description="Needed with a bot token; a webhook has its own channel.")
    blocks: list[dict[str, Any]] | None = Field(default=None, description="Block Kit blocks.")


class SlackCredential(CredentialData):
    """Exactly one of `webhook_url` and `bot_token`."""

    webhook_url: SecretUrl | None = None
    bot_token: SecretStr | None = None

    @model_validator(mode="after")
    def _check(self) -> SlackCredential:
        if (self.webhook_url is None) == (self.bot_token is None):
            raise ValueError("needs either webhook_url or bot_token")
        return self


class SlackMessage(Connector):
    name = "slack.message"
    summary = "Posts a message to Slack by an incoming webhook or a bot token."
    service = "slack"
    credential_required = True
    credential_model = SlackCredential
    input_model = SlackInput
    output_schema = object_schema(
        {
            "ok": {"const": True},
            "channel": {"type": "string", "description": "Only with a bot token."},
            "ts": {"type": "string", "description": "Slack's id of the message; only with a bot token."},
        },
        required=("ok",),
    )

    def __init__(self, client: GuardedClient, *, base: str | None = None) -> None:
        super().__init__(client)
        self._base = base

    def run(self, context: StepContext, parameters: SlackInput) -> Json:
        credential = self.secret(context, SlackCredential)

        def send(request: Request) -> HttpReply:
            return self.call(context, request)

        if credential.bot_token is not None:
            return self._by_token(credential.bot_token.get_secret_value(), parameters, send)
        assert credential.webhook_url is not None  # noqa: S101 (the model allows one of the two)
        if parameters.channel is not None:
            context.log("warning", "An incoming webhook posts to its own channel; the step's channel is ignored.")
        return self._by_webhook(credential.webhook_url.get_secret_value(), parameters, send)

    def _by_webhook(self, url: str, parameters: SlackInput, send: Send) -> Json:
        target = rebased(str(parse_url(url)), hosts=WEBHOOK_HOSTS, base=self._base)
        answer = GuardedWebhookClient(target, send).send(text=parameters.text, blocks=parameters.blocks)
        if answer.status_code != 200:
            reply = HttpReply(answer.status_code, answer.headers, answer.body.encode())
            raise failure(reply, subject="Slack", detail=excerpt(reply.body, characters=100))
        return {"ok": True}

    def _by_token(self, token: str, parameters: SlackInput, send: Send) -> Json:
        if parameters.channel is None:
            raise Fatal("slack.message needs a channel when the credential is a bot token.", code="channel_missing")
        client = GuardedWebClient(token, send, base=self._base or API_BASE)
        try:
            answer = client.chat_postMessage(channel=parameters.channel, text=parameters.text, blocks=parameters.blocks)
        except SlackApiError as error:
            raise _refusal(error) from None
        except SlackClientError:
            raise Fatal("The request is not one that Slack's client can make.", code="invalid_request") from None
        return {"ok": True, "channel": answer.get("channel"), "ts": answer.get("ts")}


class GuardedWebhookClient(WebhookClient):
    """slack-sdk's webhook client, its connection replaced by `send`."""

    def __init__(self, url: str, send: Send) -> None:
        super().__init__(url, retry_handlers=[], logger=_silent)
        self._send = send

    def _perform_http_request_internal(self, url: str, req: UrllibRequest) -> WebhookResponse:
        reply = self._send(_translated(url, req))
        body = reply.body.decode("utf-8", "replace")
        return WebhookResponse(url=url, status_code=reply.status, body=body, headers=dict(reply.headers))


class GuardedWebClient(WebClient):
    """slack-sdk's Web API client, its connection replaced by `send`. `base` may end in ``/api`` or leave that out."""

    def __init__(self, token: str, send: Send, *, base: str) -> None:
        api = base if base.endswith("/api") else f"{base}/api"
        super().__init__(token=token, base_url=api, retry_handlers=[], logger=_silent)
        self._send = send

    def _perform_urllib_http_request_internal(self, url: str, req: UrllibRequest) -> dict[str, Any]:
        reply = self._send(_translated(url, req))
        return {"status": reply.status, "headers": dict(reply.headers), "body": reply.body.decode("utf-8", "replace")}


def _translated(url: str, request: UrllibRequest) -> Request:
    """The SDK's request for our client, which names itself and frames the message."""
    own = {"user-agent", "content-length", "host"}
    headers = {name.lower(): value for name, value in request.header_items() if name.lower() not in own}
    data = request.data if isinstance(request.data, bytes) else b""
    return Request("POST", url, headers, data, credential=True)


def _refusal(error: SlackApiError) -> RetryLater | Fatal:
    """The error of the executor's language for an answer that is not ``ok``."""
    response = error.response
    name = str(response.get("error") or "")
    if response.status_code == 200 and name not in TEMPORARY:
        data = {"status": 200, "error": name, "details": response.get("response_metadata")}
        return Fatal(f"Slack refused the message: {name or 'no reason given'}.", code="slack_refused", data=data)
    wait = retry_after(response.headers.get("retry-after"))
    if response.status_code == 200:
        return RetryLater(f"Slack cannot take the message now: {name}.", after=wait, code="slack_unavailable")
    reply = HttpReply(response.status_code, response.headers, name.encode())
    return failure(reply, subject="Slack", detail=name, after=wait)
