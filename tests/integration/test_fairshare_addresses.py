"""Every form of address leads to the same queue: for the transport, and for whoever looks at the lanes."""

# kombu has no annotations.
# mypy: disable-error-code="no-untyped-call,attr-defined,untyped-decorator"

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection, Consumer, Queue
from kombu.exceptions import OperationalError

from embedded.redis import RedisServer
from engine.fairshare import Lanes, connect, register
from engine.fairshare.address import master, sentinels
from tests.fairshare_servers import Group, tls_in_front_of

register()

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "fair-share.md"


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that wants a password."""
    server = RedisServer(tmp_path / "guarded", durable=True).start()
    yield server
    server.stop()


def passes_a_message(url: str, **options: Any) -> None:
    """Publishes into a lane, looks at it through `Lanes`, and consumes it, all by the same URL."""
    lanes = Lanes(url, prefix=options.get("global_keyprefix", ""))
    with Connection(f"fair{url}", transport_options=options) as connection:
        channel = connection.channel()
        with connection.Producer(channel) as producer:
            producer.publish({"n": 1}, routing_key="runs", headers={"id": "m1", "tenant_id": "acme"})
        found = lanes.inspect("acme")
        assert found is not None
        assert found.backlog == 1
        got: list[Any] = []
        with Consumer(channel, [Queue("runs")], on_message=got.append):
            connection.drain_events(timeout=10)
        assert got[0].decode() == {"n": 1}
        assert [position.state for position in [lanes.position("m1")] if position] == ["in_flight"]
        got[0].ack()
        assert lanes.total().in_flight == 0


def test_a_password_and_the_number_of_a_database_are_kept_to(guarded: RedisServer) -> None:
    passes_a_message(f"{guarded.url.removesuffix('/0')}/3")
    with redis.Redis.from_url(guarded.url) as client:
        assert set(client.info("keyspace")) == {"db3"}


def test_a_wrong_password_is_said_at_once(guarded: RedisServer) -> None:
    url = f"redis://:wrong@127.0.0.1:{guarded.port}/0"
    with pytest.raises((redis.AuthenticationError, OperationalError), match="password"):
        passes_a_message(url)
    with pytest.raises(redis.AuthenticationError):
        Lanes(url).total()


def test_every_key_has_the_prefix(redis_url: str) -> None:
    passes_a_message(redis_url, global_keyprefix="ours:")
    with redis.Redis.from_url(redis_url) as client:
        keys = {key.decode() for key in client.scan_iter()}
    assert "{ours:runs}:lane:acme" in keys
    assert {key for key in keys if not key.startswith(("ours:", "{ours:"))} == set()


def test_tls_is_spoken_and_the_server_is_verified(redis_server: RedisServer, tmp_path: Path) -> None:
    with tls_in_front_of(redis_server.port, tmp_path) as (port, certificate):
        passes_a_message(f"rediss://127.0.0.1:{port}/5?ssl_ca_certs={certificate}")
        unknown = f"rediss://127.0.0.1:{port}/5"
        with pytest.raises((redis.ConnectionError, OperationalError), match="CERTIFICATE_VERIFY_FAILED"):
            passes_a_message(unknown)
        with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
            Lanes(unknown).total()


def test_sentinel_leads_to_the_master_and_after_a_fail_over_to_the_new_one(tmp_path: Path) -> None:
    group = Group(tmp_path)
    try:
        lanes = Lanes(group.url)
        passes_a_message(group.url)
        lanes.configure("acme", weight=3)
        with redis.Redis.from_url(group.master.url) as client:
            assert client.wait(1, 5000) == 1  # the replica has it
        group.fail_over()
        with contextlib.suppress(redis.ConnectionError):  # Sentinel may still close old connections; workers reconnect
            passes_a_message(group.url)
        lanes.drain("acme")
        passes_a_message(group.url)
        kept = lanes.inspect("acme")
        assert kept is not None
        assert kept.weight == 3
    finally:
        group.close()


def test_sentinel_urls_are_completed_from_each_other() -> None:
    urls = ["fairsentinel://a:1", "fairsentinel://user:secret@b:2/main/4?ssl_cert_reqs=none"]
    assert sentinels(urls) == [
        f"fairsentinel://user:secret@{host}/main/4?ssl_cert_reqs=none" for host in ("a:1", "b:2")
    ]


def test_the_client_of_a_sentinel_url_has_its_user_and_its_tls() -> None:
    client = connect("sentinel://user:p%40ss@a:1/main/4?ssl_ca_certs=ca.pem")
    kwargs = client.connection_pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("user", "p@ss", 4)
    assert (kwargs["ssl_ca_certs"], kwargs["ssl_cert_reqs"]) == ("ca.pem", "required")
    assert client.connection_pool.service_name == "main"


@pytest.mark.parametrize("path", ["", "/", "/0", "/main/x", "/main/0/1"])
def test_a_sentinel_url_without_a_name_says_what_is_wanted(path: str) -> None:
    with pytest.raises(ValueError, match="name of the master"):
        master(path)
    with pytest.raises(ValueError, match="name of the master"):
        Lanes(f"sentinel://127.0.0.1:1{path}")


def test_the_rights_that_the_documentation_names_are_enough(redis_url: str, tmp_path: Path) -> None:
    """For publishing, consuming, a worker with its control commands, and looking at lanes."""
    (rights,) = re.findall(r"^ACL SETUSER fairlane (.*)$", DOCUMENTATION.read_text(), flags=re.MULTILINE)
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command("ACL", "SETUSER", "fairlane", "reset", *rights.split())
        url = redis_url.replace("redis://", "redis://fairlane:password@")
        done = threading.Event()
        app = Celery("rights", broker=f"fair{url}", set_as_current=False)
        app.conf.update(task_default_queue="runs", task_acks_late=True, task_queues=[Queue("runs"), Queue("system")])

        @app.task(name="set", shared=False)
        def set_done() -> None:
            done.set()

        try:
            passes_a_message(url)
            worker: Any
            with start_worker(app, perform_ping_check=False, shutdown_timeout=20) as worker:
                set_done.apply_async(headers={"tenant_id": "t"})
                assert done.wait(10)
                done.clear()
                set_done.apply_async(queue="system")
                assert done.wait(10)
                assert app.control.inspect(timeout=5, limit=1).ping() == {worker.hostname: {"ok": "pong"}}
            assert Lanes(url).check(repair=True) == []
            # redis-py asks for notifications of newer servers with CLIENT, and does without.
            assert {entry["object"] for entry in admin.acl_log()} <= {"client"}
        finally:
            admin.acl_deluser("fairlane")
            admin.acl_log_reset()
