"""A kombu transport on Redis whose fair queues share the workers between tenants by worker-seconds.

``fairredis://`` (``fairrediss://`` with TLS, ``fairsentinel://`` with Sentinel) takes the URLs and the options of
kombu's ``redis://``, and two more: ``fair_queues``, the names of the queues that are fair (default ``["runs"]``), and
``lease``, the seconds that a message stays with a worker of which nothing is heard (default 30). All other queues are
kombu's own.

On a fair queue the list that kombu blocks on holds tickets. Whoever pops one claims the messages that are fairest at
that moment (``lua/claim.lua``), as many as it may prefetch. While work is left, a worker that consumes no other queue
claims again in the round trip that carries its acks, without a ticket; one that consumes other queues too does so every
other time. See ``docs/fair-share.md``.

What happens when things fail: a message moves from waiting to leased inside Redis, so a worker that dies loses
nothing; its messages come back when their leases run out. A lost connection hands nothing back: the leases are
renewed and the acks are sent over the next connection (``hands.py``). What cannot be decoded, and what is rejected
without requeueing (as Celery does with a task it does not know), is set aside, not dropped. A publish waits at most
`socket_timeout` for a Redis that does not answer, and then raises `OperationalError`, which nobody retries by itself;
repeating it is safe.
"""

# kombu has no annotations, and narrows some attributes to what its own classes assign.
# mypy: disable-error-code="no-untyped-call,assignment,no-any-return"

from __future__ import annotations

import ssl
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.url import parse_url

from engine.fairshare.address import SENTINEL_PORT, sentinels
from engine.fairshare.channel import Channel, SentinelChannel
from engine.fairshare.poller import Nudge, Poller

SCHEMES = {"fairredis": "Transport", "fairrediss": "TLSTransport", "fairsentinel": "SentinelTransport"}


def register() -> None:
    """Makes kombu and Celery know the schemes; call it before the first connection, as often as you like."""
    for scheme, transport in SCHEMES.items():
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{transport}"


class Transport(redis.Transport):
    """``fairredis://``"""

    Channel = Channel
    cycle: Any
    _looping = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def create_channel(self, connection: Any) -> Any:
        channel = super().create_channel(connection)
        channel.looping = self._looping
        return channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self._looping = True
        for channel in self.channels:
            channel.looping = True
        super().register_with_event_loop(connection, loop)
        self.cycle.nudge = Nudge(loop)

    def close_connection(self, connection: Any) -> None:
        nudge, self.cycle.nudge = self.cycle.nudge, None
        super().close_connection(connection)
        if nudge is not None:
            nudge.close()


class TLSTransport(Transport):
    """``fairrediss://``. Unlike kombu's ``rediss://`` it verifies the server unless told otherwise."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not client.ssl or client.ssl is True:
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


class SentinelTransport(Transport):
    """``fairsentinel://``"""

    default_port = SENTINEL_PORT
    Channel = SentinelChannel

    def __init__(self, client: Any, **kwargs: Any) -> None:
        # kombu goes on to the next URL when a sentinel does not answer, and then knows only what that one says.
        complete = sentinels([f"fair{url.removeprefix('fair')}" for url in client.alt or ()])
        if complete != client.alt:
            client.alt[:] = complete
            client._init_params(**{**client._initial_params, **parse_url(complete[0])})
        super().__init__(client, **kwargs)
