"""python guard.py TRAINER COMMAND …: run a server so that it does not outlive the trainer, nor its workers outlive it.

A server's workers live on when it is killed (vLLM's do), and a server lives on when the trainer is. So each runs under
this small process, in a session of its own: when the trainer (process id TRAINER) or the server ends, or this process
is asked to, all that is in the session is killed, and its segments in /dev/shm are removed. Should the guard itself be
killed, the kernel kills the server, and the trainer does the rest. Ends with the exit code of the server, 128 + N if
signal N killed it. Only the standard library is used.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

_GRACE_S = 5.0
_POLL_S = 0.1
_LOOK_S = 5.0  # between looks at what the server has in /dev/shm: a kill leaves nothing to look at
_SHARED = "/dev/shm/"
#: How SGLang's segments are called that it does not remove when it is killed.
_LEFT_BEHIND = "sglang_loads_"
_SETTLED_S = 1.0  # after which whoever makes a segment has mapped it


def _signal_when_parent_dies(number: int) -> None:
    """Linux: the kernel sends this process a signal when the one that started it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)


def _processes() -> list[int]:
    """All processes but this one, as far as /proc shows them."""
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    return []


def members(session: int) -> list[int]:
    """The processes of a session, without this one."""
    found = []
    for pid in _processes():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def segments(pids: list[int]) -> set[str]:
    """Files in /dev/shm that processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/maps") as maps:
            for line in maps:
                path = line.partition("/")[2].rstrip("\n")
                if f"/{path}".startswith(_SHARED) and not path.endswith(" (deleted)"):
                    found.add(f"/{path}")
    return found


def left_behind(since: float) -> set[str]:
    """Segments that an SGLang server of this user has made after `since` (time.time()): one that dies before anybody
    has looked at it is known by nothing else."""
    found = set()
    with contextlib.suppress(OSError), os.scandir(_SHARED) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                made = entry.stat()
                if entry.name.startswith(_LEFT_BEHIND) and made.st_uid == os.getuid() and made.st_mtime >= since - 1:
                    found.add(entry.path)
    return found


def end_session(session: int, known: set[str], since: float) -> None:
    """Kill the processes of a session, which began at `since` (time.time()), and remove the segments that they have, or
    had (`known`), in /dev/shm and that no other process has."""
    pids: set[int] = set()
    found = set(known)
    for _ in range(2):  # what one has started while the list was made is on the next
        present = members(session)
        found |= segments(present)
        pids.update(present)
        for pid in present:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    if behind := left_behind(since) - found:
        time.sleep(_SETTLED_S)  # another server may be about to map what it has just made
        found |= behind
    if found:
        for path in found - segments([pid for pid in _processes() if pid not in pids]):
            with contextlib.suppress(OSError):  # it has gone by itself
                os.unlink(path)


def main(trainer: int, command: list[str]) -> int:
    """Run the command to its end; see above."""
    asked = False

    def ask(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    _signal_when_parent_dies(signal.SIGTERM)
    if os.getppid() != trainer:  # it died before the kernel was asked to tell
        return 128 + signal.SIGTERM
    session = os.getpid()
    if os.getsid(0) != session:
        os.setsid()
    server = subprocess.Popen(command, process_group=0, preexec_fn=lambda: _signal_when_parent_dies(signal.SIGKILL))
    known: set[str] = set()
    began = time.time()
    deadline = float("inf")
    look = time.monotonic() + _LOOK_S
    while server.poll() is None:
        ending = asked or os.getppid() != trainer
        if time.monotonic() > look or (ending and deadline == float("inf")):
            known |= segments(members(session))
            look = time.monotonic() + _LOOK_S
        if ending and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_S
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
        if time.monotonic() > deadline:
            server.kill()
        time.sleep(_POLL_S)
    end_session(session, known, began)
    code = server.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
