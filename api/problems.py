"""Every error as an RFC 9457 problem document: ``type, title, status, detail``, a stable ``code``, the request's id.

A fault of the input also has ``errors``, each with the JSON pointer of the place and a sentence. What may be repeated
says when in ``Retry-After``. An error that nobody foresaw tells its request id and nothing else; the log has the rest.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.errors import FairlaneError, Fault, InvalidInput, QuotaExceeded, Unavailable
from engine.quotas import StartRefused, note_refusal
from engine.templates import pointer

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 100
"""That are told at once: a body can have a hundred thousand, and nobody mends them by reading."""
UNAVAILABLE_RETRY = timedelta(seconds=2)

log = structlog.get_logger(__name__)

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "too_large",
    415: "unsupported_media_type",
}
_WHOLE_BODY_MISSING = "a JSON object is needed as the body; send it with Content-Type: application/json"
_SENTENCES = {
    "extra_forbidden": "this field is not known here",
    "missing": "this field is required",
    "string_pattern_mismatch": "holds a character that is not possible here",
    "dict_type": "must be an object",
    "list_type": "must be a list",
}
"""For pydantic's kinds of errors whose own words are made for programmers."""


class Problem(JSONResponse):
    """A problem document; `more` are further members."""

    media_type = MEDIA_TYPE

    def __init__(
        self, status: int, code: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any
    ) -> None:
        document = {
            "type": f"urn:fairlane:problem:{code}",
            "title": code.replace("_", " ").capitalize(),
            "status": status,
            "detail": detail,
            "code": code,
            **more,
        }
        super().__init__(document, status_code=status, headers=dict(headers or {}))


def install(app: FastAPI) -> None:
    """Let `app` answer every kind of error this way."""
    app.add_exception_handler(FairlaneError, _ours)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)


async def _ours(request: Request, error: Exception) -> Problem:
    assert isinstance(error, FairlaneError)  # noqa: S101 - registered for it
    status = error.http_status if isinstance(error, QuotaExceeded) else error.status
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, Unavailable):
        log.error("request_failed", error=type(error).__name__, code=error.error_code, reason=error.detail)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        log.info("request_denied", code=error.error_code, method=request.method, path=request.url.path, ip=_ip(request))
    if isinstance(error, StartRefused):
        await run_in_threadpool(note_refusal, request.app.state.services.database, error)
    more: dict[str, Any] = {key: value for key, value in error.extra.items() if key != "retry_after"}
    detail = error.detail
    if isinstance(error, Unavailable):
        log.warning("request_unavailable", reason=detail)
        detail = error.told
    if isinstance(error, InvalidInput):
        more["errors"] = _errors(error.faults)
        detail = detail if len(error.faults) <= MOST_FAULTS else _sentence(error.faults, len(error.faults))
    return _problem(request, status, error.error_code, detail, headers=_headers(error, status), more=more)


def _ip(request: Request) -> str | None:
    return request.client.host if request.client else None


def _headers(error: FairlaneError, status: int) -> dict[str, str]:
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    wait = error.retry_after if isinstance(error, QuotaExceeded) else None
    if isinstance(error, Unavailable):
        wait = UNAVAILABLE_RETRY
    return {"Retry-After": str(max(1, math.ceil(wait.total_seconds())))} if wait is not None else {}


async def _validation(request: Request, error: Exception) -> Problem:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it
    items = error.errors()
    faults = [_fault(item) for item in items[:MOST_FAULTS]]
    detail = _sentence(faults, len(items))
    return _problem(request, HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_input", detail, more={"errors": _errors(faults)})


def _sentence(faults: Sequence[Fault], count: int) -> str:
    """The first faults of `count`, as one text."""
    told = "; ".join(map(str, faults[:MOST_FAULTS]))
    return told if count <= MOST_FAULTS else f"{told}; and {count - MOST_FAULTS:,} more"


def _fault(item: Mapping[str, Any]) -> Fault:
    """One of pydantic's errors. It may name what was expected, never what was sent: that may be a secret."""
    where, *path = item["loc"]
    if where == "body" and not path and item["type"] != "value_error":
        return Fault("", _WHOLE_BODY_MISSING)
    place = ""
    for part in path:
        place = pointer(place, part)
    message = _length(item) or _SENTENCES.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")
    return Fault(place, message[:1].lower() + message[1:])


def _length(item: Mapping[str, Any]) -> str | None:
    """What is wrong with a length: of a secret text pydantic would say that it has too few "items"."""
    for kind, bound, word in (("too_short", "min_length", "least"), ("too_long", "max_length", "most")):
        if item["type"] == kind:
            limit = item["ctx"][bound]
            unit = "item" if item["ctx"]["field_type"] in ("List", "Dictionary") else "character"
            return f"must have at {word} {limit:,} {unit}{'' if limit == 1 else 's'}"
    return None


async def _http(request: Request, error: Exception) -> Problem:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    details = {
        404: f"There is nothing at {request.url.path}; /api/docs lists what there is.",
        405: f"{request.method} is not possible on {request.url.path}.",
    }
    usual = _CODES.get(error.status_code, HTTPStatus(error.status_code).phrase.lower().replace(" ", "_"))
    code = getattr(error, "code", usual)
    standard = error.detail == HTTPStatus(error.status_code).phrase
    detail = details.get(error.status_code, error.detail) if standard else error.detail
    return _problem(request, error.status_code, code, detail, headers=error.headers)


def unforeseen(request: Request, error: Exception) -> Problem:
    """For what no handler knows. The log gets the frames and not the message, which may quote what was sent."""
    frames = "".join(traceback.format_tb(error.__traceback__)[-12:])
    log.error("request_failed", error=type(error).__name__, method=request.method, path=request.url.path, frames=frames)
    detail = "Something went wrong on our side. Tell the operator the request id; the log has more under it."
    return _problem(request, HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail)


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Problem:
    request_id = request.scope.get("fairlane.request_id")
    return Problem(int(status), code, detail, headers=headers, **{**(more or {}), "request_id": request_id})


def _errors(faults: Sequence[Fault]) -> Sequence[Mapping[str, str]]:
    return [{"pointer": fault.pointer, "detail": fault.message} for fault in faults[:MOST_FAULTS]]
