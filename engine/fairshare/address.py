"""Where Redis is: the URLs that the transport takes, for those who are no Celery worker too.

``redis://`` and ``rediss://`` as redis-py reads them. Sentinel is one URL for each sentinel, joined by ``;``, of which
one says the name that the sentinels give to the master, and the number of the database::

    sentinel://:password@sentinel1:26379/mymaster/0;sentinel://sentinel2:26379

Every scheme may begin with ``fair``. TLS is asked for with ``ssl_...`` parameters: ``?ssl_ca_certs=ca.pem``; the server
is verified unless they say otherwise. Nothing here connects.
"""

# Parts of redis-py have no annotations.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

SENTINEL_PORT = 26379

NEXT_AT_ONCE: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
"""How a sentinel is asked: else redis-py spends four seconds of retries on a dead one before it asks the next."""


def connect(url: str, *, timeout: float = 3.0) -> redis.Redis:
    """A client for `url`; `timeout` in seconds. Raises ValueError for a URL that nothing can be made of."""
    plain = url.removeprefix("fair")
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": min(timeout, 2.0)}
    if not plain.startswith("sentinel://"):
        return redis.Redis.from_url(plain, **timeouts)
    urls = [urlsplit(one) for one in sentinels(plain.split(";"))]
    name, number = master(urls[0].path)
    hosts = [(one.hostname or "127.0.0.1", one.port or SENTINEL_PORT) for one in urls]
    sentinel = Sentinel(hosts, sentinel_kwargs=timeouts | NEXT_AT_ONCE)
    client: redis.Redis = sentinel.master_for(name, db=number, **_credentials(urls[0]), **_tls(urls[0]), **timeouts)
    return client


def sentinels(urls: Sequence[str]) -> list[str]:
    """The same URLs, each with all that any of them says: scheme, user, password, master, database, parameters."""
    parts = [urlsplit(url) for url in urls]
    user = next((one.netloc.rpartition("@")[0] for one in parts if "@" in one.netloc), "")
    path = next((one.path for one in parts if one.path.strip("/")), "")
    query = next((one.query for one in parts if one.query), "")
    hosts = [one.netloc.rpartition("@")[2] for one in parts]
    return [urlunsplit((parts[0].scheme, f"{user}@{host}" if user else host, path, query, "")) for host in hosts]


def master(path: str) -> tuple[str, int]:
    """The name of the master and the number of the database: ``mymaster``, or ``mymaster/0``."""
    name, _, number = unquote(path).strip("/").partition("/")
    if not name or name.isdigit() or (number and not number.isdigit()):
        raise ValueError(f"want sentinel://host:port/<name of the master>/<number of the database>, not /{path}")
    return name, int(number or 0)


def _credentials(url: SplitResult) -> dict[str, str]:
    given = {"username": url.username, "password": url.password}
    return {key: unquote(value) for key, value in given.items() if value}


def _tls(url: SplitResult) -> dict[str, Any]:
    given = {key: value for key, value in parse_qsl(url.query) if key.startswith("ssl_")}
    if not given:
        return {}
    given["ssl_cert_reqs"] = given.get("ssl_cert_reqs", "required").removeprefix("CERT_").lower()
    return {"ssl": True, **given}
