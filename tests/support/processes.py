"""What a family of processes does to the machine: where it listens, what it says of itself, what it leaves."""

from __future__ import annotations

from pathlib import Path

import psutil

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
_SHARED = Path("/dev/shm")


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started and that lives."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def listening(pid: int) -> dict[str, list[int]]:
    """Ports at which a family listens for TCP, by address."""
    found: dict[str, list[int]] = {}
    for process in family(pid):
        try:
            connections = process.net_connections("tcp")
        except psutil.NoSuchProcess:
            continue
        for c in connections:
            if c.status == psutil.CONN_LISTEN:
                found.setdefault(c.laddr.ip, []).append(c.laddr.port)
    return found


def listening_abroad(pid: int) -> dict[str, list[int]]:
    """As `listening`, of addresses that other hosts reach."""
    return {address: ports for address, ports in listening(pid).items() if address not in LOOPBACK}


def shared_segments(part: str) -> set[str]:
    """Names in /dev/shm that have this part."""
    return {path.name for path in _SHARED.iterdir() if part in path.name}


def mapped_segments(pid: int) -> set[str]:
    """Paths in /dev/shm that a family has mapped."""
    found: set[str] = set()
    for process in family(pid):
        try:
            found |= {m.path for m in process.memory_maps() if m.path.startswith(f"{_SHARED}/")}
        except psutil.NoSuchProcess:
            continue
    return found
