"""The route class of the API: authenticates before anything is read, and reads JSON strictly.

Strictly: no NaN or Infinity, nor a number that would become one; no half surrogate pairs; nesting within bounds. A
syntax error is a 400 that names line and column. A workflow may be sent as YAML too: the text becomes the field
``definition`` of the body. A query parameter that the route does not take is refused, as an unknown field is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from structlog.contextvars import bind_contextvars

from api.auth import OPEN, Call, authenticate
from api.services import Services
from engine.errors import Fault, InvalidInput
from engine.templates import pointer

JSON = "application/json"
_MAY_OVERFLOW = re.compile(rb"[0-9][eE]|[0-9]{300}")
ABOUT = ("workflow_id", "run_id")
YAML = frozenset({"application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"})


class MalformedBody(HTTPException):
    """A body that is not JSON, or not YAML; FastAPI lets only its own kind of error through."""

    code = "malformed_json"

    def __init__(self, reason: object) -> None:
        super().__init__(400, f"The body is not what its Content-Type says: {reason}.")


class StrictRequest(Request):
    """A request whose JSON is parsed strictly."""

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                value = pydantic_core.from_json(body, allow_inf_nan=False)
            except ValueError as error:
                raise MalformedBody(error) from None
            if _MAY_OVERFLOW.search(body) and not _is_finite(value):
                raise MalformedBody("it holds a number that is too large")
            self._json = value
        return self._json


def _is_finite(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


class YamlRequest(Request):
    """A request whose body is the text of a workflow in YAML."""

    async def json(self) -> Any:
        try:
            return {"definition": (await self.body()).decode()}
        except UnicodeDecodeError as error:
            raise MalformedBody(error) from None


class Route(APIRoute):
    """A route that only an authenticated caller reaches, unless it is in `OPEN`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        is_open = all((method, self.path) in OPEN for method in self.methods or ())
        reads_json = self.body_field is not None
        known = frozenset(_query_names(self.dependant))

        async def guarded(request: Request) -> Response:
            bind_contextvars(**_named(request.path_params))
            if not is_open:
                request.state.call = await run_in_threadpool(call_of, request)
                bind_contextvars(tenant=request.state.call.principal.tenant_id)
                _refuse_unknown(request.query_params, known)
            return await handle(_readable(request) if reads_json else request)

        return guarded


def _named(path: Mapping[str, Any]) -> dict[str, str]:
    """What the path says that the request is about, for log lines."""
    return {name.removesuffix("_id"): str(path[name]) for name in ABOUT if name in path}


def _query_names(dependant: Dependant) -> Iterator[str]:
    """The query parameters that a route or what it depends on takes."""
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _query_names(inner)


def _refuse_unknown(given: Iterable[str], known: frozenset[str]) -> None:
    """Raises InvalidInput for a parameter that would be ignored: a list without its filter is another list.

    A route that takes none ignores them; there is nothing to misspell.
    """
    names = ", ".join(sorted(known))
    unknown = [name for name in given if name not in known]
    faults = [Fault(pointer("", name), f"is not a parameter here; known are {names}") for name in unknown]
    if known and faults:
        raise InvalidInput(faults)


def call_of(request: Request) -> Call:
    """The call that its headers stand for. Raises Unauthenticated, Forbidden."""
    services: Services = request.app.state.services
    headers = request.headers
    principal = authenticate(
        services,
        authorization=headers.get("authorization"),
        tenant_id=headers.get("x-tenant-id"),
        ip=address_of(request),
    )
    return Call(services, principal)


def address_of(request: Request) -> str | None:
    """Where the request comes from; behind a proxy that uvicorn trusts, what that proxy says."""
    return request.client.host if request.client else None


def _readable(request: Request) -> Request:
    """The request in the form that its Content-Type asks for. Raises a 415 for a body that is neither JSON nor YAML."""
    headers = request.headers
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == JSON or (media_type.startswith("application/") and media_type.endswith("+json")):
        return StrictRequest(request.scope, request.receive)
    if media_type in YAML:
        scope = {**request.scope, "headers": list(request.scope["headers"])}
        MutableHeaders(scope=scope)["content-type"] = JSON
        return YamlRequest(scope, request.receive)
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        what = media_type or "nothing"
        raise HTTPException(415, f"Send the body as Content-Type: {JSON} (or YAML for a workflow), not as {what}.")
    return request
