"""The thread that looks after what a worker process has in hand, also while its main loop is blocked.

`keep` gives the `Hands` of a broker, one for the process, with its thread. The thread is a loop around
`Hands.run_once`: leases are renewed every third of their length, leases that ran out anywhere are taken back and a
lost ticket is replaced every second, a throttled lane is woken when it may go on. A broken connection is logged once
and tried again; as long as it is shorter than the lease, nothing comes of it. While there is nothing to look after, the
thread sleeps.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable

from redis.exceptions import RedisError

from engine.fairshare.hands import Hands

logger = logging.getLogger("fairlane.fairshare")

_all: dict[Hashable, Hands] = {}
_lock = threading.Lock()


def keep(broker: Hashable, make: Callable[[], Hands]) -> Hands:
    """The hands of this process for `broker`; made, and looked after from now on, at the first call."""
    with _lock:
        hands = _all.get(broker)
        if hands is None:
            hands = _all[broker] = make()
            threading.Thread(target=_loop, args=(hands, os.getpid()), name="fairshare-keeper", daemon=True).start()
        return hands


def started(message_id: str) -> bool:
    """The work on this message (by its Celery task id) begins now: it is charged from here, not from its claim.

    Call it from Celery's `task_prerun` signal. Returns False when the message is not in the hands of this process, as
    in the child of a prefork pool; then it is charged from the claim, which with a prefetch of one per slot is nearly
    the same.
    """
    return any(hands.started(message_id) for hands in list(_all.values()))


def counters() -> dict[str, int]:
    """What this process did so far: claims, claimed, acked, late, returned, registered, set_aside."""
    total: dict[str, int] = {}
    for hands in list(_all.values()):
        for name, value in hands.counters.items():
            total[name] = total.get(name, 0) + value
    return total


def _loop(hands: Hands, pid: int) -> None:
    broken = False
    pause = hands.interval
    while os.getpid() == pid:
        hands.planned = time.monotonic() + pause
        hands.wake.wait(None if hands.idle else pause)
        hands.wake.clear()
        try:
            tended = hands.run_once()
        except (RedisError, OSError) as error:
            if not broken:
                logger.warning("cannot look after what is in hand: %s; trying again", error)
            broken, pause = True, hands.interval
            continue
        except Exception:
            logger.exception("looking after what is in hand failed; trying again")
            continue
        broken = False
        pause = hands.interval if tended.due_in is None else min(max(tended.due_in, 0.001), hands.interval)
        if tended.lost:
            logger.warning(
                "%d leases ran out while their messages were in hand; their acks will change nothing", tended.lost
            )


def _close() -> None:
    for hands in list(_all.values()):
        hands.close()
    _all.clear()


def _forget() -> None:
    """In a forked child: the parent's hands are not the child's."""
    global _lock
    _lock = threading.Lock()
    _all.clear()


atexit.register(_close)
with contextlib.suppress(AttributeError):
    os.register_at_fork(after_in_child=_forget)
