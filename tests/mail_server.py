"""A real SMTP server on loopback for tests; it keeps what it is sent. It can offer TLS and ask for a password."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from embedded.ports import free_port


@dataclass
class Mailbox:
    """Where mails arrive. `refuse` makes the server refuse them."""

    port: int
    mails: list[EmailMessage] = field(default_factory=list)
    logins: list[tuple[str, str]] = field(default_factory=list)
    refuse: bool = False

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse:
            return "550 no such mailbox"
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        return "250 OK"

    def authenticate(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=True)


@contextlib.contextmanager
def mail_server(tls: ssl.SSLContext | None = None, *, password: bool = False) -> Iterator[Mailbox]:
    """With `tls` it offers STARTTLS; with `password` it wants a login."""
    mailbox = Mailbox(free_port())
    controller = Controller(
        mailbox,
        hostname="127.0.0.1",
        port=mailbox.port,
        tls_context=tls,
        authenticator=mailbox.authenticate,
        auth_required=password,
        auth_require_tls=tls is not None,
    )
    controller.start()
    try:
        yield mailbox
    finally:
        controller.stop()
