"""The child process of :mod:`bridge_mcore.rewards.pool`: runs one job at a time under hard limits.

It is run as a script (``python -P worker.py``), not forked or spawned by :mod:`multiprocessing`: nothing of the
trainer (torch, its ``__main__``, its threads and locks) comes along. Frames of length-prefixed JSON go over the pipes
that were its stdin and stdout; nothing is ever pickled. Only the standard library is imported until the first frame
has said where the target function is.

Every limit is one that the kernel enforces with a signal's default action, so that a job dies inside C code too, for
instance while Python computes ``9**9**9`` without once returning to the interpreter:

* CPU time: ITIMER_PROF, SIGPROF. CPU time rather than wall time, because on a loaded machine a wall limit rejects
  right answers (3 of 500 on MATH500 with 2 s).
* wall time: ITIMER_REAL, SIGALRM; a backstop for a job that sleeps. The parent has its own.
* memory: RLIMIT_AS.
* death of the parent: SIGIO on the request pipe, which carries nothing during a job but its own hang-up. An idle
  worker sees the end of the pipe, and asks once a second who its parent is, since a process that the parent forked
  may hold the other end open. (PR_SET_PDEATHSIG is no good here: it fires when the *thread* that started the child
  ends.)
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct(">I")
#: Largest frame in bytes, either way.
MAX_FRAME = 16 << 20


def encode(message: Any) -> bytes:
    """One frame: four bytes of length, then JSON. ASCII, so that lone surrogates in a response survive."""
    body = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(body)) + body


def decode(buffer: bytearray) -> Any | None:
    """Take one frame off the front of ``buffer``; None when it holds no whole one.

    :raises ValueError: the frame is longer than MAX_FRAME or not JSON.
    """
    if len(buffer) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(buffer)
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    if len(buffer) < _LENGTH.size + length:
        return None
    body = bytes(buffer[_LENGTH.size : _LENGTH.size + length])
    del buffer[: _LENGTH.size + length]
    return json.loads(body)


class _Requests:
    """Frames from the parent. Ends the process at the end of the pipe or when the parent is gone."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.parent = os.getppid()
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self) -> Any:
        while (message := decode(self._buffer)) is None:
            if not self._poll.poll(1000):
                if os.getppid() != self.parent:
                    os._exit(0)
                continue
            chunk = os.read(self.fd, 1 << 16)
            if not chunk:
                os._exit(0)
            self._buffer += chunk
        return message

    def watch_parent(self, on: bool) -> None:
        """While on, the parent's death ends this process at once, whatever code it is in."""
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
        # The signal tells of a change only: look once whether the parent had gone before.
        if on and any(event & select.POLLHUP for _, event in self._poll.poll(0)):
            os._exit(0)


def _write(fd: int, message: Any) -> None:
    data = memoryview(encode(message))
    while data:
        data = data[os.write(fd, data) :]


def _peak_bytes() -> int:
    """Most address space this process ever had, in bytes; 0 where /proc does not say.

    Not ru_maxrss: across fork and exec that starts at the parent's peak.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmPeak:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 0


def _set_signals() -> None:
    # Dispositions and masks survive exec, so a parent that ignores or blocks one of these would disarm it here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fatal = {signal.SIGPROF, signal.SIGALRM, signal.SIGIO, signal.SIGTERM}
    for number in fatal:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, fatal)


def _set_memory_limit(limit: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


def _load(path: list[str], target: str) -> Callable[[Any], Any]:
    """Import ``module:function``, and let the module warm up, so that no job is charged for imports."""
    sys.path.extend(entry for entry in path if entry not in sys.path)
    module_name, function_name = target.split(":")
    module = importlib.import_module(module_name)
    if hasattr(module, "warm_up"):
        module.warm_up()
    return getattr(module, function_name)


def _run(function: Callable[[Any], Any], job: Any) -> dict[str, Any]:
    """The reply to one job. Its JSON form is checked here, under the limits, since ``str`` of a value may not end."""
    try:
        reply = {"value": function(job)}
        json.dumps(reply)
        return reply
    except MemoryError:
        return {"memory": True}
    except BaseException as error:  # SystemExit and the like too: no job may end the worker politely
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def main() -> None:
    """Serve jobs until the parent goes."""
    _set_signals()
    requests, replies = _Requests(os.dup(0)), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)  # a library that prints must not break the frames
    settings = requests.read()
    limit = _set_memory_limit(settings["memory_bytes"])
    function = _load(settings["path"], settings["target"])
    fcntl.fcntl(requests.fd, fcntl.F_SETOWN, os.getpid())
    # A job that came near the limit may have met a MemoryError that the code under test swallowed; and a worker that
    # has grown that far is better replaced. "Near" is half of what was free at the start.
    base = _peak_bytes()
    strained = base + (limit - base) // 2
    _write(replies, {"ready": True})
    os.dup2(null, 2)  # until here the parent kept what went wrong; from here on it is library noise
    while True:
        request = requests.read()
        # From here on, and not before, this job may be what ends the process.
        _write(replies, {"began": request["id"]})
        requests.watch_parent(True)
        signal.setitimer(signal.ITIMER_REAL, settings["wall_seconds"])
        signal.setitimer(signal.ITIMER_PROF, settings["cpu_seconds"])
        reply = _run(function, request["job"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        requests.watch_parent(False)
        retire = "memory" in reply or _peak_bytes() > strained
        _write(replies, {**reply, "id": request["id"], "retire": retire})
        if retire:
            os._exit(0)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        os._exit(0)
