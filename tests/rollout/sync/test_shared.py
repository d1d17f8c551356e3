"""Memory by which weights go to servers of this host: who may open it, and that it is gone with the trainer."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from bridge_mcore.rollout.sync.shared import buffer_path, file_buffer, release_path, shared_buffer
from tests.support.processes import mapped_segments, shared_segments
from tests.support.servers import ROOT

#: Makes a buffer of a kind, says where it is and how many bytes lie in it, and waits to be killed.
OWNER = """
import socket, sys, time
import torch
from bridge_mcore.rollout.sync import shared
listening = socket.create_server(("127.0.0.1", 0))
listening.set_inheritable(True)  # as sockets of process groups are
buffer = getattr(shared, sys.argv[1])(4096, torch.device("cpu")).fill_(7)
print("port", listening.getsockname()[1], shared.buffer_path(buffer), flush=True)
time.sleep(300)
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def owner(kind: str) -> tuple[subprocess.Popen[str], int, str]:
    """(a process with a buffer, a port at which it listens, path of the buffer)."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, kind], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("port"):
        assert line, "it has ended"
    _, port, path = line.split()
    return process, int(port), path


def test_a_buffer_for_vllm_has_no_name_and_dies_with_its_owner() -> None:
    process, _, path = owner("file_buffer")
    try:
        assert path.startswith(f"/proc/{process.pid}/fd/")
        assert mapped_segments(process.pid) == set()
        mapped = torch.from_file(path, shared=False, size=4096, dtype=torch.uint8)  # as the worker does
        assert int(mapped.sum()) == 7 * 4096
    finally:
        process.kill()
        process.wait()
    assert not os.path.exists(path)
    assert int(mapped.sum()) == 7 * 4096  # who has it open keeps it


def test_a_buffer_that_is_released_cannot_be_opened() -> None:
    buffer = file_buffer(4096, torch.device("cpu"))
    path = buffer_path(buffer[:8])
    assert path is not None and os.path.exists(path)
    assert not os.get_inheritable(int(path.rpartition("/")[2]))
    release_path(path)
    assert not os.path.exists(path)
    buffer.fill_(3)  # the memory goes with the buffer
    assert int(buffer.sum()) == 3 * 4096


def test_a_buffer_for_sglang_is_private_and_dies_with_its_owner() -> None:
    """torch's segment: for this user only, under a name of its own each time, removed by torch's manager after SIGKILL;
    the manager, which outlives the trainer for a moment, has none of the trainer's sockets."""
    names = []
    for _ in range(2):
        process, port, _ = owner("shared_buffer")
        try:
            (name,) = shared_segments(f"torch_{process.pid}_")
            names.append(name)
            found = Path("/dev/shm", name).stat()
            assert stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.getuid()
            managers = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "torch_shm_manager"]
            with_port = [p.pid for p in managers for c in p.net_connections("tcp") if c.laddr.port == port]
            assert managers and with_port == []
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        until(lambda name=name: not shared_segments(name))
    middles = [name.split("_")[2] for name in names]
    assert len(set(middles)) == 2 and all(name.startswith("torch_") for name in names)


def test_sockets_stay_closed_in_what_is_executed() -> None:
    """Not only once: sockets that are opened between two buffers too."""
    for _ in range(2):
        left, right = (s.detach() for s in socket.socketpair())
        for descriptor in (left, right):
            os.set_inheritable(descriptor, True)
        shared_buffer(64, torch.device("cpu"))
        assert not os.get_inheritable(left) and not os.get_inheritable(right)
        os.close(left)
        os.close(right)
