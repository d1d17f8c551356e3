"""python guard.py COMMAND …: run a server so that nothing of it outlives the trainer, and nothing outlives itself.

A server's workers live on when it is killed (vLLM's do), and a server lives on when the trainer is. So each runs under
this small process, in a session of its own: whoever ends first, guard, trainer or server, all that the server started
is killed. Ends with the exit code of the server, 128 + N if signal N killed it. Only the standard library is used.
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


def main(command: list[str]) -> int:
    """Run the command to its end; see above."""
    asked = False

    def ask(_number: int, _frame: object) -> None:
        nonlocal asked
        asked = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    _signal_when_parent_dies(signal.SIGTERM)
    parent = os.getppid()
    server = subprocess.Popen(
        command, start_new_session=True, preexec_fn=lambda: _signal_when_parent_dies(signal.SIGKILL)
    )
    deadline = float("inf")
    while server.poll() is None:
        if (asked or os.getppid() != parent) and deadline == float("inf"):
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
    sys.exit(main(sys.argv[1:]))
