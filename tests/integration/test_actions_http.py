"""The guarded client and http.request against real sockets: ordinary servers, and a hostile one."""

from __future__ import annotations

import gzip
import json
import os
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from actions.connectors.http import HttpRequest
from actions.guard import AddressPolicy
from actions.http import GuardedClient, Request
from actions.registry import build
from engine.errors import Cancelled, Fatal, RetryLater
from tests.action_step import Step, run
from tests.outside_services import Answer, EchoService, HostileServer, bomb, json_answer


@pytest.fixture
def echo() -> Iterator[EchoService]:
    with EchoService() as service:
        yield service


@pytest.fixture
def hostile() -> Iterator[HostileServer]:
    with HostileServer() as server:
        yield server


@pytest.fixture
def client(echo: EchoService, hostile: HostileServer) -> Iterator[GuardedClient]:
    guarded = GuardedClient(AddressPolicy([echo.endpoint, hostile.endpoint]))
    yield guarded
    guarded.close()


@pytest.fixture
def action(client: GuardedClient) -> HttpRequest:
    return HttpRequest(client)


def test_a_request_carries_method_query_headers_json_and_the_idempotency_key(
    action: HttpRequest, echo: EchoService
) -> None:
    output = run(
        action,
        Step(),
        method="post",
        url=f"{echo.url}/orders?kept=1",
        query={"n": 5, "tags": ["a", "b"], "none": None},
        headers={"X-Number": 7},
        json={"total": 9.5},
    )
    sent = echo.received[0]
    assert (sent.method, sent.path, sent.json) == ("POST", "/orders", {"total": 9.5})
    assert sent.query == {"kept": ["1"], "n": ["5"], "tags": ["a", "b"]}
    assert sent.headers["x-number"] == "7"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["idempotency-key"] == "run_a:call"
    assert output["status"] == 200
    assert output["headers"]["content-type"] == "application/json"
    assert output["body"]["method"] == "POST"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("application/json", b'{"a": 1}', {"body": {"a": 1}}),
        ("application/problem+json; charset=utf-8", b"[1]", {"body": [1]}),
        ("application/json", b"{not json", {"body": "{not json"}),
        ("application/json", b"NaN", {"body": "NaN"}),
        ("application/json", b"[" * 100_000, {"body": "[" * 100_000}),
        ("application/json", b"[" * 64 + b"]" * 64, {"body": json.loads("[" * 64 + "]" * 64)}),
        ("application/json", b"[" * 65 + b"]" * 65, {"body": "[" * 65 + "]" * 65}),
        ("application/json", b"", {"body": ""}),
        ("text/plain; charset=latin-1", b"caf\xe9", {"body": "café"}),
        ("text/plain; charset=no-such-thing", b"x", {"body": "eA==", "body_encoding": "base64"}),
        ("text/plain; charset=punycode", b"x", {"body": "eA==", "body_encoding": "base64"}),
        ("text/plain; charset=IDNA", b"x", {"body": "eA==", "body_encoding": "base64"}),
        ("text/plain; charset=zlib_codec", b"x", {"body": "eA==", "body_encoding": "base64"}),
        ("text/plain; charset=unicode-escape", b"x", {"body": "eA==", "body_encoding": "base64"}),
        ("image/png", b"\x89PNG\xff", {"body": "iVBOR/8=", "body_encoding": "base64"}),
    ],
)
def test_the_body_comes_back_as_json_text_or_base64(
    action: HttpRequest, echo: EchoService, kind: str, body: bytes, expected: dict[str, object]
) -> None:
    echo.script = [Answer(200, body, {"content-type": kind})]
    output = run(action, Step(), url=echo.url)
    assert {name: output[name] for name in ("body", "body_encoding") if name in output} == expected


@pytest.mark.parametrize(
    ("secret", "header", "value"),
    [
        ({"bearer": "t0ken"}, "authorization", "Bearer t0ken"),
        ({"basic": {"username": "ann", "password": "pass"}}, "authorization", "Basic YW5uOnBhc3M="),
        ({"headers": {"X-Api-Key": "k3y"}}, "x-api-key", "k3y"),
    ],
)
def test_a_credential_becomes_headers(
    action: HttpRequest, echo: EchoService, secret: dict[str, object], header: str, value: str
) -> None:
    run(action, Step(secret=secret), url=echo.url)
    assert echo.received[0].headers[header] == value


def test_a_credential_is_followed_over_no_redirect(
    action: HttpRequest, echo: EchoService, hostile: HostileServer
) -> None:
    with pytest.raises(Fatal, match="redirects are not followed") as caught:
        run(action, Step(secret={"bearer": "t0ken"}), url=f"{hostile.url}/to/302/{echo.url}/")
    assert echo.received == []
    assert caught.value.data["status"] == 302


def test_a_credential_with_hosts_goes_nowhere_else(action: HttpRequest, echo: EchoService) -> None:
    with pytest.raises(Fatal, match="not meant for") as caught:
        run(action, Step(secret={"bearer": "t0ken", "hosts": ["api.example.com"]}), url=echo.url)
    assert caught.value.error_code == "credential_host"
    assert echo.received == []


def test_a_credential_that_does_not_fit_names_fields_and_no_values(action: HttpRequest, echo: EchoService) -> None:
    with pytest.raises(Fatal) as caught:
        run(action, Step(secret={"bearer": "hush", "basic": {"username": "ann", "passwort": "hush"}}), url=echo.url)
    assert caught.value.error_code == "credential_invalid"
    assert "basic.password" in caught.value.detail
    assert "hush" not in caught.value.detail


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 422])
def test_a_client_error_is_fatal_with_status_and_excerpt(action: HttpRequest, echo: EchoService, status: int) -> None:
    echo.script = [Answer(status, b"because " + b"x" * 1000)]
    with pytest.raises(Fatal) as caught:
        run(action, Step(), url=f"{echo.url}/secret-path?key=secret")
    assert caught.value.data["status"] == status
    assert caught.value.data["body"].startswith("because ")
    assert len(caught.value.data["body"]) < 600
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_error_is_retried_after_what_the_server_says(
    action: HttpRequest, echo: EchoService, status: int
) -> None:
    echo.script = [Answer(status, b"", {"retry-after": "17"})]
    with pytest.raises(RetryLater) as caught:
        run(action, Step(), url=echo.url)
    assert caught.value.after is not None
    assert caught.value.after.total_seconds() == 17


@pytest.mark.parametrize(("expect", "status"), [([404], 404), (["4xx"], 418), (404, 404), (["5xx", 409], 503)])
def test_expected_statuses_do_not_fail(action: HttpRequest, echo: EchoService, expect: object, status: int) -> None:
    echo.script = [json_answer({"fine": True}, status=status)]
    assert run(action, Step(), url=echo.url, expect=expect)["status"] == status


def test_an_expected_redirect_is_handed_over_instead_of_followed(action: HttpRequest, hostile: HostileServer) -> None:
    output = run(action, Step(), url=f"{hostile.url}/to/302//elsewhere", expect=["3xx"])
    assert (output["status"], output["headers"]["location"]) == (302, "/elsewhere")


@pytest.mark.parametrize(
    ("status", "method", "arrives_as", "body"),
    [
        (301, "POST", "GET", ""),
        (302, "POST", "GET", ""),
        (303, "PUT", "GET", ""),
        (307, "POST", "POST", "hello"),
        (308, "PUT", "PUT", "hello"),
    ],
)
def test_a_redirect_changes_the_method_as_browsers_do(
    action: HttpRequest, echo: EchoService, status: int, method: str, arrives_as: str, body: str
) -> None:
    echo.script = [Answer(status, b"", {"location": "/next"})]
    output = run(action, Step(), method=method, url=echo.url, body="hello")
    assert (output["body"]["method"], output["body"]["path"], output["body"]["body"]) == (arrives_as, "/next", body)


def test_a_redirect_to_another_host_carries_only_harmless_headers(
    action: HttpRequest, echo: EchoService, hostile: HostileServer
) -> None:
    secrets = {"Authorization": "Bearer x", "Cookie": "c=1", "X-Api-Key": "k", "X-Anything": "v", "Accept": "text/css"}
    run(action, Step(), url=f"{hostile.url}/to/307/{echo.url}/landed", headers=secrets)
    headers = echo.received[0].headers
    assert set(headers) == {"host", "accept", "accept-encoding", "user-agent", "idempotency-key"}
    assert headers["accept"] == "text/css"


def test_headers_stay_on_a_redirect_within_the_origin(action: HttpRequest, echo: EchoService) -> None:
    echo.script = [Answer(302, b"", {"location": "/next"})]
    run(action, Step(), url=echo.url, headers={"X-Api-Key": "k"})
    assert [request.headers["x-api-key"] for request in echo.received] == ["k", "k"]


@pytest.mark.parametrize(
    "where",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:6379/",
        "http://localhost:5432/",
        "http://[::1]:8000/",
        "http://2130706433:8000/",
        "//10.0.0.1/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_FLUSHALL",
    ],
)
def test_every_redirect_is_judged_again(action: HttpRequest, hostile: HostileServer, where: str) -> None:
    with pytest.raises(Fatal) as caught:
        run(action, Step(), url=f"{hostile.url}/to/302/{where}")
    assert caught.value.error_code == "target_refused"
    assert hostile.paths == [f"/to/302/{where}"]


def test_a_redirect_loop_ends_after_five_hops(action: HttpRequest, hostile: HostileServer) -> None:
    with pytest.raises(Fatal) as caught:
        run(action, Step(), url=f"{hostile.url}/loop")
    assert caught.value.error_code == "too_many_redirects"
    assert len(hostile.paths) == 6


@pytest.mark.parametrize("path", ["drip", "slow-headers", "informational", "silent"])
def test_a_slow_answer_ends_at_the_deadline(action: HttpRequest, hostile: HostileServer, path: str) -> None:
    began = time.monotonic()
    with pytest.raises(RetryLater) as caught:
        run(action, Step(seconds=0.4), url=f"{hostile.url}/{path}")
    assert caught.value.error_code == "timeout"
    assert time.monotonic() - began < 1.5
    assert hostile.released.wait(5), "the connection was not closed"


@pytest.mark.parametrize("path", ["drip", "slow-headers", "silent"])
def test_a_cancel_ends_a_call_within_two_seconds(action: HttpRequest, hostile: HostileServer, path: str) -> None:
    step = Step(seconds=60)
    ended: list[tuple[type[BaseException], float]] = []

    def call() -> None:
        try:
            run(action, step, url=f"{hostile.url}/{path}")
        except BaseException as error:
            ended.append((type(error), time.monotonic()))

    thread = threading.Thread(target=call)
    thread.start()
    assert hostile.started.wait(5)
    cancelled_at = time.monotonic()
    step.cancelled.set()
    thread.join(5)
    assert ended
    assert ended[0][0] is Cancelled
    assert ended[0][1] - cancelled_at < 2
    assert hostile.released.wait(5), "the connection was not closed"


def test_a_body_without_end_stops_at_the_size_limit(action: HttpRequest, hostile: HostileServer) -> None:
    with pytest.raises(Fatal) as caught:
        run(action, Step(), url=f"{hostile.url}/endless")
    assert caught.value.error_code == "response_too_large"
    assert hostile.released.wait(5), "the connection was not closed"


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_bomb_stops_at_the_size_limit_without_filling_memory(
    action: HttpRequest, hostile: HostileServer, encoding: str
) -> None:
    assert len(bomb(encoding)) < 100_000  # made now, so that only what the client takes is measured
    tracemalloc.start()
    try:
        with pytest.raises(Fatal) as caught:
            run(action, Step(), url=f"{hostile.url}/{encoding}-bomb")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.error_code == "response_too_large"
    assert peak < 16 * 1024 * 1024


def test_compressed_answers_are_read_and_never_asked_for_in_brotli(
    action: HttpRequest, echo: EchoService, hostile: HostileServer
) -> None:
    echo.script = [
        Answer(200, gzip.compress(b'{"a": 1}'), {"content-type": "application/json", "content-encoding": "gzip"})
    ]
    assert run(action, Step(), url=echo.url)["body"] == {"a": 1}
    assert echo.received[0].headers["accept-encoding"] == "gzip, deflate"
    with pytest.raises(Fatal) as caught:
        run(action, Step(), url=f"{hostile.url}/brotli")
    assert caught.value.error_code == "response_encoding"


@pytest.mark.parametrize("path", ["huge-header", "many-headers", "garbage", "hang-up", "lying-length", "switch"])
def test_an_answer_that_is_not_http_is_a_clear_error(action: HttpRequest, hostile: HostileServer, path: str) -> None:
    with pytest.raises(RetryLater, match="broke off") as caught:
        run(action, Step(), url=f"{hostile.url}/{path}")
    assert caught.value.error_code == "network"


def test_a_port_where_nobody_listens_is_retried_later(client: GuardedClient) -> None:
    with HostileServer() as gone:
        endpoint, url = gone.endpoint, gone.url
    with pytest.raises(RetryLater) as caught:
        GuardedClient(AddressPolicy([endpoint])).send(Request("GET", url, {}), seconds=5)
    assert caught.value.error_code == "network"


def test_calls_to_one_origin_share_a_connection_and_no_cookies(action: HttpRequest, echo: EchoService) -> None:
    echo.script = [Answer(200, b"", {"set-cookie": "session=tenant-a"})]
    run(action, Step(), url=echo.url)
    run(action, Step(), url=echo.url)
    first, second = echo.received
    assert first.connection == second.connection
    assert "cookie" not in second.headers


def test_a_connection_that_the_server_closed_meanwhile_is_replaced(client: GuardedClient) -> None:
    with EchoService() as brief:
        own = GuardedClient(AddressPolicy([brief.endpoint]))
        brief.script = [Answer(200, b"", {"connection": "close"})]
        for _ in range(3):
            assert own.send(Request("GET", brief.url, {}), seconds=5).status == 200
        assert len({request.connection for request in brief.received}) == 2
        own.close()


@pytest.mark.parametrize(
    "name", ["Host", "Content-Length", "transfer-encoding", "Connection", "Upgrade", "Proxy-Authorization"]
)
def test_headers_that_frame_the_message_cannot_be_set(action: HttpRequest, echo: EchoService, name: str) -> None:
    with pytest.raises(Fatal, match="cannot be set"):
        run(action, Step(), url=echo.url, headers={name: "1"})
    assert echo.received == []


def test_the_environment_names_no_proxy(
    action: HttpRequest, echo: EchoService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert run(action, Step(), url=echo.url)["status"] == 200


def test_a_client_made_before_a_fork_works_after_it_on_its_own_connection(
    client: GuardedClient, echo: EchoService
) -> None:
    client.send(Request("GET", echo.url, {}), seconds=5)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if client.send(Request("GET", echo.url, {}), seconds=5).status == 200 else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.send(Request("GET", echo.url, {}), seconds=5)
    parent_before, in_child, parent_after = echo.received
    assert parent_before.connection == parent_after.connection != in_child.connection


def test_many_threads_share_one_client(action: HttpRequest, echo: EchoService) -> None:
    outputs: list[int] = []
    threads = [
        threading.Thread(target=lambda: outputs.extend(run(action, Step(), url=echo.url)["status"] for _ in range(10)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outputs == [200] * 160


def test_a_name_whose_answer_changes_reaches_only_what_was_judged(echo: EchoService) -> None:
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    asked: list[str] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked) - 1, 1)]

    policy = AddressPolicy()
    client = GuardedClient(policy, resolver=rebinding)
    assert policy.addresses("rebind.example", echo.port, resolver=rebinding) == ["93.184.216.34"]
    with pytest.raises(Fatal) as caught:
        client.send(Request("GET", f"http://rebind.example:{echo.port}/", {}), seconds=5)
    assert caught.value.error_code == "target_refused"
    assert len(asked) == 2
    assert echo.received == []


def test_a_name_lookup_that_hangs_ends_at_the_deadline() -> None:
    release = threading.Event()

    def hanging(host: str, port: int) -> list[str]:
        release.wait(30)
        return []

    began = time.monotonic()
    with pytest.raises(RetryLater) as caught:
        GuardedClient(resolver=hanging).send(Request("GET", "http://slow.example/", {}), seconds=0.3)
    release.set()
    assert caught.value.error_code == "timeout"
    assert time.monotonic() - began < 1.5


def test_fetch_returns_the_answer_or_says_what_failed(client: GuardedClient, echo: EchoService) -> None:
    reply = client.fetch(f"{echo.url}/feed", headers={"If-None-Match": "x"})
    assert reply.status == 200
    assert echo.received[0].headers["if-none-match"] == "x"
    echo.script = [Answer(304), Answer(404, b"gone"), Answer(503, b"", {"retry-after": "3"})]
    assert client.fetch(echo.url).status == 304
    with pytest.raises(Fatal):
        client.fetch(echo.url)
    with pytest.raises(RetryLater):
        client.fetch(echo.url)


def test_what_the_operator_allows_is_reachable_and_nothing_beside_it(echo: EchoService, hostile: HostileServer) -> None:
    registry = build(allowed_networks=[f"localhost:{echo.port}"], service_urls={"slack": hostile.url})
    assert run(registry["http.request"], Step(), url=f"http://localhost:{echo.port}/")["status"] == 200
    with pytest.raises(Fatal):
        run(registry["http.request"], Step(), url=f"http://127.0.0.1:{echo.port}/")
    with pytest.raises(RetryLater):
        run(registry["http.request"], Step(), url=f"{hostile.url}/hang-up")
    registry.close()


def self_signed(folder: Path) -> Path:
    """One file with a key and a certificate for tls.example."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tls.example")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("tls.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = folder / "tls.pem"
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    return file


def test_tls_checks_the_name_of_the_url_and_not_the_address(tmp_path: Path) -> None:
    file = self_signed(tmp_path)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(file)
    trusting = ssl.create_default_context(cafile=str(file))
    with EchoService(tls=server_side) as service:
        policy = AddressPolicy([service.endpoint])
        client = GuardedClient(policy, resolver=lambda host, port: ["127.0.0.1"], ssl_context=trusting)
        for _ in range(2):
            assert client.send(Request("GET", f"https://tls.example:{service.port}/", {}), seconds=5).status == 200
        assert len({request.connection for request in service.received}) == 1
        assert service.received[0].headers["host"] == f"tls.example:{service.port}"
        with pytest.raises(RetryLater, match="cannot be reached"):
            client.send(Request("GET", f"https://other.example:{service.port}/", {}), seconds=5)
        strict = GuardedClient(policy, resolver=lambda host, port: ["127.0.0.1"])
        with pytest.raises(RetryLater, match="cannot be reached"):
            strict.send(Request("GET", f"https://tls.example:{service.port}/", {}), seconds=5)
        client.close()


def test_a_tls_handshake_that_stalls_ends_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = GuardedClient(AddressPolicy([f"127.0.0.1:{port}"]))
        began = time.monotonic()
        with pytest.raises(RetryLater) as caught:
            client.send(Request("GET", f"https://127.0.0.1:{port}/", {}), seconds=0.3)
        assert caught.value.error_code == "timeout"
        assert time.monotonic() - began < 1.5
