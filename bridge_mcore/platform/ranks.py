"""Ranks and ports of this machine, as far as they are known without torch."""

from __future__ import annotations

import os
import socket


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def joined() -> bool:
    """True in a process that torchrun (or `launch.local`) started as one rank of a world."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
