"""The servers and the supervisor behind ``fairlane up``: a real Postgres and a real Redis out of Python wheels."""

from embedded.servers import ensure

__all__ = ["ensure"]
