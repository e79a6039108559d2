"""Real Celery workers, killed, stopped and cut off. `bench/faults.py` runs the same faults in large numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import faults
from bench.faults import Ground
from bench.harness import until


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path, lease=1.0) as ground:
        yield ground


def test_a_killed_worker_loses_nothing_and_its_work_runs_again_soon(ground: Ground) -> None:
    result = faults.kill_at_random(ground, kills=4)
    assert result.lost == 0
    assert len(result.again) == result.hit
    assert result.at(1.0) < ground.lease + 5
    assert ground.settle() == []


def test_a_ticket_lost_between_pop_and_claim_delays_nothing(ground: Ground) -> None:
    assert faults.ticket_lost_with_its_worker(ground) < 2


@pytest.mark.parametrize("request_", ["claim", "BRPOP"])
def test_a_worker_killed_while_a_reply_is_held_back_loses_nothing(ground: Ground, request_: str) -> None:
    assert faults.reply_held_back(ground, request_) < ground.lease + 8
    assert ground.settle() == []


def test_poison_is_set_aside_and_the_worker_goes_on(ground: Ground) -> None:
    set_aside, alive = faults.poison(ground)
    assert alive
    assert set_aside == 7
    reasons = {message.reason.split(":")[0] for message in ground.lanes.set_aside()}
    assert reasons == {"not a message", "rejected", "undecodable"}


def test_a_publish_whose_reply_is_lost_is_one_message(ground: Ground) -> None:
    assert faults.publish_reply_lost(ground) == 1


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_task_five_leases_long_is_delivered_once(ground: Ground, pool: str) -> None:
    assert faults.longer_than_its_lease(ground, leases=5, pool=pool) == 1


def test_a_worker_stopped_past_its_lease_harms_nothing_when_it_goes_on(ground: Ground) -> None:
    starts, late, broken = faults.stopped_past_its_lease(ground)
    assert (starts, late, broken) == (2, 1, [])


def test_what_is_in_hand_is_registered_again_after_redis_lost_everything(ground: Ground) -> None:
    registered, twice, broken = faults.redis_restarted_empty(ground)
    assert (registered, twice, broken) == (8, 0, [])


def test_consumption_goes_on_after_every_connection_drop(ground: Ground) -> None:
    worst, starts = faults.connections_dropped(ground, drops=20)
    assert starts == 1
    assert worst < 5


def test_a_worker_that_is_stopped_in_order_hands_back_what_it_has_not_begun(tmp_path: Path) -> None:
    with Ground(tmp_path, lease=30.0) as ground:
        seconds, twice = faults.stopped_in_order(ground)
        assert twice == 0
        assert seconds < 15  # nobody waited for a lease to run out
        assert ground.settle() == []


@contextlib.contextmanager
def refusing_to_write(ground: Ground) -> Iterator[None]:
    """Redis cannot save, since a folder has the name of its file, and so takes no writes (``MISCONF``)."""
    (ground.broker.folder / "taken").mkdir()
    ground.client.config_set("save", "3600 1")
    ground.client.config_set("dbfilename", "taken")
    ground.client.bgsave()
    until(lambda: ground.client.info()["rdb_last_bgsave_status"] == "err", within=30, what="the failure")
    yield
    ground.client.config_set("dbfilename", "free")
    ground.client.bgsave()
    until(lambda: ground.client.info()["rdb_last_bgsave_status"] == "ok", within=30, what="the success")


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_of_a_redis_that_takes_no_writes_for_a_while_goes_on_by_itself(tmp_path: Path, pool: str) -> None:
    with Ground(tmp_path, lease=30.0) as ground:
        worker = ground.worker(pool=pool).ready()
        running = ground.send(1)
        ground.await_start(running)
        with refusing_to_write(ground):
            until(lambda: worker.log.read_text().count("takes no writes") >= 3, within=60, what="some attempts")
        ground.await_end(ground.send(0), within=60)
        ground.await_end(running, within=60)
        assert ground.count("start", running) == 1
        assert worker.process is not None
        assert worker.process.poll() is None
        assert ground.settle() == []
