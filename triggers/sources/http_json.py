"""The source `http.json`: a list of items somewhere in a JSON answer.

Paths are written as in templates, ``data.orders`` or ``data.0.id``; an empty path is the value itself. Each item needs
a text or a number that stays the same as long as it is the same item. With `cursor`, the query parameter of that name
carries the value that stood at the cursor's path in the newest item of the last poll that brought any; what the server
repeats all the same is deduplicated like everything else.

An answer of another shape is a Fatal that names the place.
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import unquote_plus, urlencode, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from engine.errors import BadRequest, Fatal
from engine.ports import HttpClient, Json, PollItem, PollResult
from triggers.bodies import read_body
from triggers.sources.web import WebInput, fetch

MAX_CURSOR_LENGTH = 1000

_MISSING = object()


def _path(text: str) -> str:
    if text and not all(text.split(".")):
        raise ValueError("a path is names and numbers with dots between them, such as data.orders")
    return text


Path = Annotated[str, StringConstraints(max_length=500), AfterValidator(_path)]


class Cursor(BaseModel):
    """Asks only for what is new: `parameter` is added to the query with the value at `path` of the newest item."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    parameter: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    path: Path = "id"


class HttpJsonInput(WebInput):
    items: Path = ""
    """Where the list is; left out when the answer itself is the list."""
    id: Path = "id"
    """Where the id is in an item; empty when the item itself is it."""
    cursor: Cursor | None = None
    newest_first: bool = Field(default=False)
    """Whether the list begins with the newest item; runs start in the order of the oldest first."""


class HttpJson:
    name = "http.json"
    summary = "A list in the JSON answer of a web address; each new item starts a run."
    input_model: type[BaseModel] = HttpJsonInput

    def poll(self, parameters: HttpJsonInput, cursor: Json, client: HttpClient) -> PollResult:
        before: dict[str, Json] = cursor if isinstance(cursor, dict) else {}
        position = before.get("position")
        url = _url(parameters, position)
        headers = {"accept": "application/json", **parameters.headers}
        page = fetch(client, url, headers=headers, mark=before.get("mark"))
        if page is None:
            return PollResult([], cursor)
        found = _items(_document(page.body), parameters)
        if parameters.newest_first:
            found.reverse()
        if parameters.cursor is not None and found:
            position = _position(found[-1].data, parameters.cursor)
        return PollResult(found, {"mark": page.mark, "position": position})


def _url(parameters: HttpJsonInput, position: Json) -> str:
    """The address with the cursor in its query, the rest of the query as it was written."""
    if parameters.cursor is None or position is None:
        return parameters.url
    name = parameters.cursor.parameter
    parts = urlsplit(parameters.url)
    kept = [pair for pair in parts.query.split("&") if pair and unquote_plus(pair.partition("=")[0]) != name]
    return urlunsplit(parts._replace(query="&".join([*kept, urlencode({name: position})])))


def _document(body: bytes) -> Json:
    try:
        return read_body(body, "application/json")
    except BadRequest as error:
        raise Fatal(error.detail.replace("The body", "The answer", 1), code="poll_not_json") from None


def _items(document: Json, parameters: HttpJsonInput) -> list[PollItem]:
    listed = _at(document, parameters.items)
    if not isinstance(listed, list):
        raise _shape(f"there is no list {_place(parameters.items)}")
    return [PollItem(_id(item, parameters.id, number), item) for number, item in enumerate(listed)]


def _id(item: Json, path: str, number: int) -> str:
    text = _plain(_at(item, path))
    if not text:
        raise _shape(f"item {number} of the list has no id {_place(path)}: a text or a number")
    return text


def _position(newest: Json, cursor: Cursor) -> str:
    text = _plain(_at(newest, cursor.path))
    if not text or len(text) > MAX_CURSOR_LENGTH:
        raise _shape(f"the newest item has no cursor {_place(cursor.path)}: a short text or a number")
    return text


def _at(value: Any, path: str) -> Any:
    """What stands at a path; `_MISSING` when nothing does."""
    for part in path.split(".") if path else ():
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _plain(value: Any) -> str:
    """Text of a text or a number; nothing for all else."""
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    return str(value) if plain else ""


def _place(path: str) -> str:
    return f"at {path!r}" if path else "at its root"


def _shape(problem: str) -> Fatal:
    return Fatal(f"The answer is not as the trigger expects: {problem}.", code="poll_shape")
