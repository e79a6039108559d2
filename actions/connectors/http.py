"""`http.request`: call any public HTTP API.

The answer's JSON is parsed when its media type says JSON; other text is a string, and bytes that are no text are
base64 with ``body_encoding: base64`` beside. A status that is neither 2xx nor allowed by `expect` fails the step.
JSON nested deeper than `MAX_DEPTH` is handed over as the text that it came as, and so is none that only claims to be
JSON. With a credential no redirect is followed, and a credential that names `hosts` goes to those only.
"""

from __future__ import annotations

import base64
import codecs
import json
from email.message import Message
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, model_validator

from actions.base import Connector, CredentialData, Input, Text, object_schema
from actions.guard import parse_url
from actions.http import Request
from actions.replies import failure
from engine.errors import Fatal
from engine.ports import HttpReply, Json, StepContext

MAX_REQUEST_BYTES = 10 * 1024 * 1024
MAX_DEPTH = 64
"""As deep as the body of a webhook may be; what is much deeper cannot be written again."""

_NO_CHARSETS = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
"""Codecs of Python that no server means, by their `CodecInfo.name`: some take hours for a large body."""


def _header_value(value: str) -> str:
    if any(character in value for character in "\r\n\0"):
        raise ValueError("a header value cannot hold line breaks")
    return value.strip()


HeaderName = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
HeaderValue = Annotated[Text, AfterValidator(_header_value)]
Headers = dict[HeaderName, HeaderValue]
QueryValue = Text | list[Text] | None
Method = Annotated[
    str,
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
    StringConstraints(pattern=r"^(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS)$"),
]
Expected = Annotated[int | str, Field(description="A status such as 404, or a class such as 4xx.")]


class HttpInput(Input):
    method: Method = "GET"
    url: str = Field(min_length=1, description="Absolute http or https URL.")
    headers: Headers = Field(default_factory=dict)
    query: dict[str, QueryValue] = Field(default_factory=dict, description="Added to the URL; a list repeats the name.")
    json_: Any = Field(default=None, alias="json", description="Sent as JSON.")
    body: Text | None = Field(default=None, description="Sent as it is, UTF-8.")
    expect: list[Expected] = Field(default_factory=list, description="Statuses that do not fail, beside 2xx.")

    @model_validator(mode="before")
    @classmethod
    def _wrap_expect(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("expect"), int | str):
            return {**data, "expect": [data["expect"]]}
        return data

    @model_validator(mode="after")
    def _check(self) -> HttpInput:
        if self.has_json and self.body is not None:
            raise ValueError("give json or body, not both")
        for item in self.expect:
            _expected(item)
        return self

    @property
    def has_json(self) -> bool:
        return "json_" in self.model_fields_set

    def allows(self, status: int) -> bool:
        return 200 <= status < 300 or any(status in _expected(item) for item in self.expect)


def _expected(item: int | str) -> range:
    text = str(item).strip().lower()
    if len(text) == 3 and text.isdecimal() and "1" <= text[0] <= "5":
        return range(int(text), int(text) + 1)
    if len(text) == 3 and text[1:] == "xx" and text[0] in "12345":
        return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
    raise ValueError("expect lists statuses such as 404 or classes such as 4xx")


class BasicAuth(CredentialData):
    username: str
    password: str


class HttpCredential(CredentialData):
    """At least one of `headers`, `basic`, `bearer`; `basic` and `bearer` exclude each other."""

    headers: Headers | None = None
    basic: BasicAuth | None = None
    bearer: Annotated[str, StringConstraints(min_length=1)] | None = None
    hosts: list[str] | None = Field(default=None, description="The only hosts that may receive this credential.")

    @model_validator(mode="after")
    def _check(self) -> HttpCredential:
        if not (self.headers or self.basic or self.bearer):
            raise ValueError("needs headers, basic or bearer")
        if self.basic and self.bearer:
            raise ValueError("basic and bearer exclude each other")
        return self

    def authorize(self) -> dict[str, str]:
        """The headers that carry the credential."""
        headers = dict(self.headers or {})
        if self.bearer:
            headers["Authorization"] = f"Bearer {self.bearer}"
        if self.basic:
            pair = f"{self.basic.username}:{self.basic.password}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
        return headers


class HttpRequest(Connector):
    name = "http.request"
    summary = "Calls an HTTP API and returns status, headers and body."
    service = "http"
    credential_model = HttpCredential
    input_model: type[BaseModel] = HttpInput
    output_schema = object_schema(
        {
            "status": {"type": "integer"},
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "body": {"description": "Parsed JSON, else text, else base64."},
            "body_encoding": {"const": "base64", "description": "Only there when the body is base64."},
        },
        required=("status", "headers", "body"),
    )

    def run(self, context: StepContext, parameters: HttpInput) -> Json:
        request = self._request(context, parameters)
        reply = self.call(context, request)
        if parameters.allows(reply.status):
            return {"status": reply.status, "headers": dict(reply.headers), **_body(reply)}
        detail = ""
        if 300 <= reply.status < 400 and request.credential:
            detail = "redirects are not followed when a credential is attached"
        raise failure(reply, subject=f"{parameters.method} {self._client.describe(request.url)}", detail=detail)

    def _request(self, context: StepContext, parameters: HttpInput) -> Request:
        url = parse_url(parameters.url)
        if parameters.query:
            url = url.copy_merge_params(_query(parameters))
        headers = {name.lower(): value for name, value in parameters.headers.items()}
        content = _content(parameters, headers)
        credential = context.credential is not None
        if credential:
            secret = self.secret(context, HttpCredential)
            _check_host(secret, url.host)
            headers |= {name.lower(): value for name, value in secret.authorize().items()}
        follow = not any(300 <= status < 400 for item in parameters.expect for status in _expected(item))
        return Request(parameters.method, str(url), headers, content, credential=credential, follow=follow)


def _check_host(credential: HttpCredential, host: str) -> None:
    if credential.hosts is not None and host.lower().rstrip(".") not in {name.lower() for name in credential.hosts}:
        raise Fatal(f"The credential is not meant for {host}; its hosts say where it may go.", code="credential_host")


def _query(parameters: HttpInput) -> dict[str, str | list[str]]:
    return {name: value for name, value in parameters.query.items() if value is not None}


def _content(parameters: HttpInput, headers: dict[str, str]) -> bytes:
    """The body to send; adds its content type to `headers` unless the step gave one."""
    if parameters.has_json:
        headers.setdefault("content-type", "application/json")
        content = json.dumps(parameters.json_, ensure_ascii=False, separators=(",", ":")).encode()
    elif parameters.body is not None:
        headers.setdefault("content-type", "text/plain; charset=utf-8")
        content = parameters.body.encode()
    else:
        content = b""
    if len(content) > MAX_REQUEST_BYTES:
        raise Fatal(f"The request body is larger than {MAX_REQUEST_BYTES:,} bytes.", code="request_too_large")
    return content


def _body(reply: HttpReply) -> dict[str, Json]:
    media = Message()
    media["content-type"] = reply.headers.get("content-type", "")
    kind = media.get_content_type()
    if reply.body and (kind == "application/json" or kind.endswith("+json")):
        try:
            parsed = json.loads(reply.body, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            pass  # It only claims to be JSON: hand it over as text.
        else:
            if not _too_deep(parsed):
                return {"body": parsed}
    try:
        return {"body": reply.body.decode(_codec(str(media.get_content_charset("utf-8"))))}
    except (UnicodeDecodeError, LookupError):
        return {"body": base64.b64encode(reply.body).decode(), "body_encoding": "base64"}


def _codec(charset: str) -> str:
    """The codec of a charset. Raises LookupError for one that bodies cannot be in."""
    name = codecs.lookup(charset).name
    if name in _NO_CHARSETS:
        raise LookupError(charset)
    return name


def _too_deep(value: Json) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return False
    return any(isinstance(item, dict | list) for item in level)


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")
