"""The faults of `make chaos` that harm Redis or Postgres: killed, emptied, frozen, full, without a place to write."""

from __future__ import annotations

import contextlib
import os
import signal

import redis

from bench.chaos_state import FAULTS, Chaos, fault
from bench.harness import until

__all__ = ["FAULTS"]


@fault("kill -9 of Redis, its file kept", "F6")
def kill_redis(chaos: Chaos) -> None:
    chaos.lose_redis()
    chaos.ground.redis.kill()
    chaos.last(0, 3)
    chaos.ground.redis.start()


@fault("Redis restarted empty", "F7")
def empty_redis(chaos: Chaos) -> None:
    chaos.lose_redis()
    chaos.ground.empty_redis()


@fault("FLUSHALL", "F8", 3)
def flush(chaos: Chaos) -> None:
    chaos.lose_redis()
    with chaos.client() as client:
        client.flushall()


@fault("SIGSTOP of Redis for seconds", "F9")
def freeze_redis(chaos: Chaos) -> None:
    process = chaos.ground.redis.process
    assert process is not None
    chaos.lose_redis()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        chaos.last(2, 8)
    finally:
        os.kill(process.pid, signal.SIGCONT)


@fault("Redis full (maxmemory, noeviction)", "F10")
def fill_redis(chaos: Chaos) -> None:
    chaos.ground.disturb()
    with chaos.client() as client:
        client.config_set("maxmemory", "1mb")
        chaos.last(1, 5)
        client.config_set("maxmemory", "0")


@fault("Redis takes no writes: it cannot save", "F22")
def hinder_redis(chaos: Chaos) -> None:
    chaos.ground.disturb()
    with chaos.client() as client:
        client.config_set("save", "3600 1")
        (chaos.ground.redis.folder / "taken").mkdir(exist_ok=True)
        _save(client, "taken", "err")
        chaos.last(1, 5)
        _save(client, "saved.rdb", "ok")
        client.config_set("save", "")


def _save(client: redis.Redis, file: str, outcome: str) -> None:
    client.config_set("dbfilename", file)

    def ended() -> bool:
        with contextlib.suppress(redis.ResponseError):  # one is under way already
            client.bgsave(schedule=True)
        return bool(client.info("persistence")["rdb_last_bgsave_status"] == outcome)

    until(ended, within=30, what=f"a save that ends with {outcome}")


@fault("Postgres killed and started", "F11")
def kill_postgres(chaos: Chaos) -> None:
    chaos.ground.disturb()
    chaos.ground.postgres.kill()
    chaos.ground.postgres.start()


@fault("Postgres down for seconds", "F11")
def stop_postgres(chaos: Chaos) -> None:
    chaos.ground.disturb()
    chaos.ground.postgres.stop()
    chaos.last(2, 10)
    chaos.ground.postgres.start()


@fault("Postgres read-only for seconds", "F13")
def read_only(chaos: Chaos) -> None:
    chaos.ground.disturb()
    with chaos.ground.sql() as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        chaos.last(1, 4)
        connection.execute("SET default_transaction_read_only = off")
        connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        connection.execute("SELECT pg_reload_conf()")
