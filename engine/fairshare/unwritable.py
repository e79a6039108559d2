"""A Redis that answers and takes no writes counts as one that does not answer.

Its disk or its memory is full, it has become a replica or lost its own, a script keeps it busy: all of that ends by
itself or by an operator, like an outage. kombu would take it for a fault of the command, and Celery's worker would end.
"""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

_TYPES = (ClusterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError)
"""What redis-py knows; it takes the code off their texts. What came out of a script still has it, behind a prefix."""

_CODES = re.compile(r"(^|[\s-])(BUSY|CLUSTERDOWN|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY) ")


class Unwritable(RedisConnectionError):
    """The server answers, and refuses to write; the text is its own."""


def unwritable(error: ResponseError) -> Unwritable | None:
    """What to raise instead of `error`, if it speaks of the server and not of the command."""
    if isinstance(error, _TYPES) or _CODES.search(str(error)):
        return Unwritable(f"the server takes no writes: {error}")
    return None


def attentive(connection_class: type[Any]) -> type[Any]:
    """The connection class, but such an answer raises `Unwritable`, and closes the connection like any broken one."""

    class Attentive(connection_class):  # type: ignore[misc]
        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except ResponseError as error:
                if (instead := unwritable(error)) is None:
                    raise
                self.disconnect()
                raise instead from error

    return Attentive
