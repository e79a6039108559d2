"""What workflows can be made of."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from fastapi import APIRouter

from api.auth import Call, may
from api.wire import Route
from engine import definition
from engine.permissions import Permission

router = APIRouter(route_class=Route, prefix="/api", tags=["catalog"])

Anybody = Annotated[Call, may(Permission.CATALOG_READ)]


@router.get("/actions")
def actions(call: Anybody) -> dict[str, Any]:
    """List every action with the JSON schemas of its input, its output and its credential."""
    return {"items": call.services.actions.describe(), "next_cursor": None}


@cache
def _schema() -> dict[str, Any]:
    return definition.json_schema()


@router.get("/workflow-schema")
def workflow_schema() -> dict[str, Any]:
    """Show the JSON Schema of the workflow document, for editors."""
    return _schema()
