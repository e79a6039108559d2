"""What a worker and its evaluator processes agree on: frames, commands and limits. Standard library only."""

from __future__ import annotations

import socket
import struct

ROOTS = ("trigger", "steps", "run", "workflow", "item", "index")
"""The names that an expression sees; the last two in a step that is done for each item."""
ITEM_ROOTS = ("item", "index")

FRAME = struct.Struct("!I")
"""Length of what follows. A request is JSON: ``["check", sources]`` or ``["eval", sources, context]``."""
GOOD, RETIRING = b"\0", b"\1"
"""Last byte of an answer, after its JSON: the evaluator stays, or it has just ended in an orderly way."""
NUMBER = struct.Struct("!i")
"""A pid, or a wait status, on the control socket."""
FORK, END = b"F", b"K"

RESULT_LIMIT = 256 * 1024
"""Bytes of JSON of all results of one call together."""
DEPTH_LIMIT = 32
"""Levels of nesting of a context and of a result."""


def send(connection: socket.socket, body: bytes) -> None:
    """One frame."""
    connection.sendall(FRAME.pack(len(body)) + body)


def receive(connection: socket.socket) -> bytes | None:
    """The next frame; None at end of file. Raises what the socket raises, TimeoutError included."""
    data = connection.recv(65536)
    while data:
        if len(data) >= FRAME.size and len(data) == FRAME.size + FRAME.unpack_from(data)[0]:
            return data[FRAME.size :]
        more = connection.recv(1 << 20)
        if not more:
            return None
        data += more
    return None
