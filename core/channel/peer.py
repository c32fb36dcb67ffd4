"""Who is at the other end of an AF_UNIX socket, as the system knows it."""

from __future__ import annotations

import socket
import struct
import sys

_LOCAL_PEERCRED = 1
"""macOS: option of level 0; answers a `struct xucred`: version, uid, then groups."""


def peer_uid(sock: socket.socket) -> int | None:
    """The uid of the process that connected, or that listens; None if the system does not tell."""
    try:
        if sys.platform == "darwin":
            answer = sock.getsockopt(0, _LOCAL_PEERCRED, 128)
            return int(struct.unpack_from("=II", answer)[1])
        option = getattr(socket, "SO_PEERCRED", None)
        if option is None:
            return None
        answer = sock.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
        return int(struct.unpack("3i", answer)[1])
    except (OSError, struct.error):
        return None
