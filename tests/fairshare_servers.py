"""Redis behind TLS, and Redis behind Sentinel: for tests of the addresses that the transport takes."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from embedded.ports import free_port
from embedded.redis import RedisServer, redis_binary
from tests.fairshare_waiting import until

MASTER = "mymaster"


@contextmanager
def tls_in_front_of(port: int, folder: Path) -> Iterator[tuple[int, Path]]:
    """A TLS port on 127.0.0.1 that passes everything on to `port`, and the certificate to trust."""
    certificate, key = _certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_serve, args=(listening, context, port), daemon=True).start()
        yield listening.getsockname()[1], certificate


def _serve(listening: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            plain, _ = listening.accept()
            threading.Thread(target=_pass_on, args=(plain, context, port), daemon=True).start()


def _pass_on(plain: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(plain, server_side=True) as client,
        socket.create_connection(("127.0.0.1", port)) as server,
    ):
        threading.Thread(target=_copy, args=(server, client), daemon=True).start()
        _copy(client, server)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    begin = datetime.now(UTC) - timedelta(minutes=5)
    built = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    certificate_file, key_file = folder / "certificate.pem", folder / "key.pem"
    certificate_file.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


class Group:
    """A master with one replica, watched by one sentinel, which notices a dead master after half a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.master = RedisServer(folder / "master").start()
        follow = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replica = RedisServer(folder / "replica", extra=follow).start()
        self.port = free_port()
        self._process = self._start_sentinel()
        self.url = f"sentinel://127.0.0.1:{free_port()};sentinel://127.0.0.1:{self.port}/{MASTER}/1"
        """Of two sentinels, of which the first is down; the database is number 1."""
        with self._ask() as client:
            until(lambda: self._answers(client) and self._watched(client), what="the sentinel knowing both servers")
        with redis.Redis.from_url(self.replica.url) as client:
            until(lambda: client.info("replication")["master_link_status"] == "up", what="the replica being in step")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.replica.stop()
        self.master.stop()

    def fail_over(self) -> None:
        """Kills the master; returns when the sentinel names the replica."""
        self.master.kill()
        with self._ask() as client:
            found: Any = client.sentinel_master
            until(lambda: found(MASTER)["port"] == self.replica.port, what="the fail-over")

    def _start_sentinel(self) -> subprocess.Popen[bytes]:
        configuration = self._folder / "sentinel.conf"
        configuration.write_text(
            f"port {self.port}\nbind 127.0.0.1\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {MASTER} 500\n"
            f"sentinel failover-timeout {MASTER} 3000\n"
        )
        command = [str(redis_binary()), str(configuration), "--sentinel"]
        with (self._folder / "sentinel.log").open("wb") as log:
            return subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)

    def _ask(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=1)

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    @staticmethod
    def _watched(client: redis.Redis) -> bool:
        found: Any = client.sentinel_master(MASTER)
        return bool(found["num-slaves"] == 1)
