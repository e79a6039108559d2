"""Mail through the operator's SMTP server: one plain-text message at a time, over TLS wherever the server offers it.

Mail is a courtesy: what it says can be told in another way, so a server that does not answer within ten seconds costs a
log line and never the work that the mail speaks of. A password is only ever sent over TLS.
"""

from __future__ import annotations

import smtplib
import ssl
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import structlog

from engine.settings import Settings

SECONDS = 10.0
PORTS = {"smtp": 587, "smtps": 465}

log = structlog.get_logger(__name__)


class Mailer:
    """Sends as the settings say; without ``FAIRLANE_SMTP_URL`` it sends nothing."""

    def __init__(self, settings: Settings) -> None:
        self._url = None if settings.smtp_url is None else settings.smtp_url.get_secret_value()
        self._sender = settings.mail_from

    @property
    def configured(self) -> bool:
        """Whether there is a server to send through."""
        return self._url is not None

    def send(self, *, to: str, subject: str, text: str) -> bool:
        """Whether the server took it. Never raises."""
        if self._url is None:
            return False
        message = EmailMessage()
        message["From"], message["Subject"] = self._sender, " ".join(subject.split())
        try:
            message["To"] = to
            message.set_content(text)
            with self._server() as server:
                server.send_message(message)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            log.warning("mail_not_sent", error=type(error).__name__, server=urlsplit(self._url).hostname)
            return False
        return True

    def _server(self) -> smtplib.SMTP:
        url = urlsplit(self._url or "")
        host, port = url.hostname or "", url.port or PORTS[url.scheme]
        context = ssl.create_default_context()
        if url.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(host, port, timeout=SECONDS, context=context)
        else:
            server = smtplib.SMTP(host, port, timeout=SECONDS)
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=context)
            elif url.username:
                server.close()
                raise smtplib.SMTPException("the server offers no TLS to send a password over")
        if url.username:
            server.login(unquote(url.username), unquote(url.password or ""))
        return server
