"""Ranks, ports, GPUs and memory of this machine, as far as they are known without torch."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bridge_mcore.errors import ConfigError

#: Memory sizes, GiB, are rounded to these steps: drivers keep some for themselves, not equally much on every node.
_MEMORY_STEP = 8
_GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
#: Environment variable of ranks that `launch.local` started: the file by which they find each other.
RENDEZVOUS = "BRIDGE_RENDEZVOUS"


def free_port() -> int:
    """A TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def loopback_interface() -> str | None:
    """Name of the loopback interface; None where there is none."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)


@contextmanager
def gloo_interface(local: bool) -> Iterator[None]:
    """Process groups of gloo that are made here have their sockets on loopback, if all members are on this host; else
    where the environment or the host's name says, but not on loopback."""
    before, loopback = os.environ.get(_GLOO_INTERFACE), loopback_interface()
    if local and loopback is not None:
        os.environ[_GLOO_INTERFACE] = loopback
    elif not local and before == loopback:
        os.environ.pop(_GLOO_INTERFACE, None)
    try:
        yield
    finally:
        os.environ.pop(_GLOO_INTERFACE, None)
        if before is not None:
            os.environ[_GLOO_INTERFACE] = before


def is_loopback(host: str) -> bool:
    """Whether only processes of this host reach an address."""
    return host in ("127.0.0.1", "localhost", "::1")


def own_address(towards: str | None = None) -> str:
    """The address under which a host reaches this one: that of the way to it. None: other hosts of the run, by the way
    to rank 0's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards or os.environ.get("MASTER_ADDR") or "192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return socket.gethostbyname(socket.gethostname())


def joined() -> bool:
    """True in a process that torchrun (or `launch.local`) started as one rank of a world.

    Raises ConfigError where the environment says something else than numbers.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not (value := os.environ.get(name, "0")).isdecimal():
            raise ConfigError(
                f"the environment variable {name} is '{value[:40]}', no number: torchrun sets it; for a run without "
                "torchrun unset RANK and WORLD_SIZE"
            )
    return True


def joined_world() -> int | None:
    """The number of ranks that torchrun (or `launch.local`) started, or None in a process of its own."""
    return int(os.environ["WORLD_SIZE"]) if joined() else None


def local_ranks(world: int) -> int:
    """Ranks on this machine, of `world`: torchrun says it; without it all are here."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(given), world) if given.isdecimal() and int(given) else world


def gpu_memories() -> list[int]:
    """Memory, GiB, of each GPU that this process may use, as the driver's own tool says; [] where there is none."""
    queries = (
        (["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"], r"^\s*(\d+)\s*$", 2**10),
        (["rocm-smi", "--showmeminfo", "vram", "--json"], r"VRAM Total Memory \(B\)\W+(\d+)", 2**30),
    )
    for command, pattern, per_gib in queries:
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        sizes = re.findall(pattern, answer.stdout, re.MULTILINE) if answer.returncode == 0 else []
        if sizes:
            found = [_MEMORY_STEP * max(1, round(int(size) / per_gib / _MEMORY_STEP)) for size in sizes]
            return found[: _visible(len(found))]
    return []


def _visible(present: int) -> int:
    """How many of the GPUs that are there the environment leaves visible."""
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        if (listed := os.environ.get(name)) is not None:
            named = [entry.strip() for entry in listed.split(",")]
            # CUDA ignores what follows an entry that is no device
            end = next((i for i, entry in enumerate(named) if entry in ("", "-1")), len(named))
            present = min(present, end)
    return present


def host_memory() -> float:
    """Memory of this machine, GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
