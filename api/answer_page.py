"""The page behind a signed link, for people who open it in a browser: what is asked, and two buttons.

Opening it changes nothing, so whoever looks at links before people do (a chat, a mail filter) answers nothing. It
needs no script and loads nothing.
"""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse

_POLICY = "default-src 'none'; frame-ancestors 'none'; style-src 'unsafe-inline'; form-action 'self'"
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:3em auto;padding:0 1em}"
    "button{font:inherit;padding:.4em 1.2em;margin-right:1em}"
)


def wanted(request: Request) -> bool:
    """Whether a browser asks."""
    return "text/html" in request.headers.get("accept", "")


def question(request: Request, asked: dict[str, Any]) -> HTMLResponse:
    """What is asked; a form for each step that waits."""
    forms = "".join(_form(request, ask) for ask in asked["asks"])
    body = forms or "<p>Nothing waits for an answer any more.</p>"
    return _page(asked["workflow"], body)


def thanks(workflow: str, *, approved: bool) -> HTMLResponse:
    return _page(workflow, f"<p>Thank you. You have {'agreed' if approved else 'refused'}.</p>")


def _form(request: Request, ask: dict[str, Any]) -> str:
    name = ask["step"] if ask["item"] is None else f"{ask['step']} [{ask['item']}]"
    message = ask["message"] or f"The step {name} waits for an answer."
    until = f"<p>Until {ask['expires_at']:%Y-%m-%d %H:%M} UTC.</p>" if ask["expires_at"] else ""
    return (
        f'<p>{escape(message)}</p>{until}<form method="post">'
        f"{_button(request, ask, 'Agree', approved=True)}{_button(request, ask, 'Refuse', approved=False)}</form>"
    )


def _button(request: Request, ask: dict[str, Any], label: str, *, approved: bool) -> str:
    url = request.url.include_query_params(
        approved=str(approved).lower(), step=ask["step"], **({} if ask["item"] is None else {"item": ask["item"]})
    )
    return f'<button formaction="?{escape(url.query)}">{label}</button>'


def _page(title: str, body: str) -> HTMLResponse:
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    named = f"<title>{escape(title)}</title><h1>{escape(title)}</h1>"
    document = f'<!doctype html><html lang="en">{head}{named}{body}</html>'
    return HTMLResponse(document, headers={"Content-Security-Policy": _POLICY})
