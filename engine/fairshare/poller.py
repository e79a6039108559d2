"""The turn of the channels in the event loop: acks go out and work comes in before the loop looks at its sockets."""

# kombu has no annotations, and narrows some attributes to what its own classes assign.
# mypy: disable-error-code="no-untyped-call,assignment,no-any-return"

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

from kombu.transport import redis


class Poller(redis.MultiChannelPoller):
    """Gives each channel its turn before kombu looks at the sockets."""

    nudge: Nudge | None = None

    def on_poll_start(self) -> None:
        delivered = [channel.turn() for channel in list(self._channels)]
        super().on_poll_start()
        if self.nudge is not None and any(delivered):
            self.nudge.after_delivery()


class Nudge:
    """Keeps the event loop from sleeping on what a delivery left to do.

    The loop runs what was handed to `call_soon`, then the turns of the channels, then sleeps until a socket is
    readable. A pool that runs a task where it is delivered (solo) hands over the ack during that turn: too late.
    """

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        loop.add_reader(self._reader.fileno(), self._drain)

    def after_delivery(self) -> None:
        if self._loop._ready:
            with suppress(OSError):
                self._writer.send(b"\0")

    def _drain(self) -> None:
        with suppress(OSError):
            self._reader.recv(4096)

    def close(self) -> None:
        with suppress(OSError, ValueError, KeyError):
            self._loop.remove_reader(self._reader.fileno())
        self._reader.close()
        self._writer.close()
