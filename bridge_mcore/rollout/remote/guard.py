"""python guard.py TRAINER COMMAND …: run a server so that it does not outlive the trainer, nor its workers outlive it.

A server's workers live on when it is killed (vLLM's do), and a server lives on when the trainer is. So each runs under
this small process, in a session of its own: when the trainer (process id TRAINER) or the server ends, or this process
is asked to, all that is in the server's process group is killed. Should the guard itself be killed, the kernel kills
the server. Ends with the exit code of the server, 128 + N if signal N killed it. Only the standard library is used.
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


def _signal_when_parent_dies(number: int) -> None:
    """Linux: the kernel sends this process a signal when the one that started it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number)


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
    server = subprocess.Popen(
        command, start_new_session=True, preexec_fn=lambda: _signal_when_parent_dies(signal.SIGKILL)
    )
    deadline = float("inf")
    while server.poll() is None:
        if (asked or os.getppid() != trainer) and deadline == float("inf"):
            deadline = time.monotonic() + _GRACE_S
            with contextlib.suppress(ProcessLookupError):
                server.terminate()
        if time.monotonic() > deadline:
            server.kill()
        time.sleep(_POLL_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    code = server.returncode
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
