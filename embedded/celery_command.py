"""The command ``celery`` as it is, but for one thing: it imports nothing from the folder that it is started in.

Celery puts that folder in front of the path while it imports an app, its configuration and its classes. A file there
that is called like one of ours, or like a library, would run in place of it, with the secrets of the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery.__main__ import main
from celery.utils import imports


@contextmanager
def path_as_it_is() -> Iterator[None]:
    yield


if __name__ == "__main__":
    imports.cwd_in_path = path_as_it_is
    main()
