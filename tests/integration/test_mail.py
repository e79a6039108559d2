"""Mail goes out over TLS wherever there is any, and a password never without."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from embedded.ports import free_port
from engine.errors import ConfigurationError
from engine.mail import Mailer
from tests.api_server import settings_for
from tests.mail_server import mail_server


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file = tmp_path / "mail.pem"
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, *plain))
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def send(url: str | None, to: str = "guest@example.com", subject: str = "Hello") -> bool:
    settings = settings_for("postgresql://x@127.0.0.1/x", "redis://127.0.0.1:1/0", smtp_url=url)
    return Mailer(settings).send(to=to, subject=subject, text="Grüße")


def test_the_password_is_sent_over_tls_that_is_trusted(
    tls: ssl.SSLContext, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with mail_server(tls, password=True) as mailbox:
        assert send(f"smtp://us%40er:p%3Ass@127.0.0.1:{mailbox.port}")
    assert mailbox.logins == [("us@er", "p:ss")]
    assert mailbox.mails[0].get_content().strip() == "Grüße"


def test_a_certificate_that_nobody_vouches_for_gets_neither_password_nor_mail(tls: ssl.SSLContext) -> None:
    with mail_server(tls, password=True) as mailbox:
        assert not send(f"smtp://user:password@127.0.0.1:{mailbox.port}")
    assert (mailbox.logins, mailbox.mails) == ([], [])


def test_a_password_is_not_sent_to_a_server_without_tls() -> None:
    with mail_server(password=True) as mailbox:
        assert not send(f"smtp://user:password@127.0.0.1:{mailbox.port}")
    assert (mailbox.logins, mailbox.mails) == ([], [])


def test_a_subject_or_address_cannot_add_headers() -> None:
    with mail_server() as mailbox:
        url = f"smtp://127.0.0.1:{mailbox.port}"
        assert send(url, subject="Hello\r\nBcc: eve@example.com")
        assert not send(url, to="a@example.com\r\nBcc: eve@example.com")
    (mail,) = mailbox.mails
    assert (mail["Bcc"], mail["Subject"]) == (None, "Hello Bcc: eve@example.com")


def test_without_a_server_nothing_is_sent_and_nothing_fails() -> None:
    assert not send(None)
    assert not send(f"smtp://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("smtp_url", "http://mail"), ("smtp_url", "smtp://"), ("mail_from", "nobody"), ("cors_origins", "*")],
)
def test_bad_settings_are_told_by_name(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"FAIRLANE_{variable.upper()}: "):
        settings_for("postgresql://x@127.0.0.1/x", "redis://127.0.0.1:1/0", **{variable: value})
