"""One worker process as its parent sees it: its pipes, its job, its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bridge_mcore.rewards.worker import decode, encode

_SCRIPT = Path(__file__).with_name("worker.py")
#: Wall seconds that a worker may take to start and warm up; generous, since a node that starts a job is busy.
START_SECONDS = 180.0


class WorkerProcess:
    """A child process and the frames to and from it.

    :param settings: the first frame; see :meth:`bridge_mcore.rewards.worker.main`.
    :raises OSError: no process, memory or file descriptor is left.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        environment = {
            **os.environ,
            "PYTHONHASHSEED": "0",  # the order of sets in sympy, and with it a verdict, must not vary between workers
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            # -P: the script's directory must not be on sys.path, its math.py would hide the standard library's
            [sys.executable, "-P", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=environment,
            process_group=0,  # Ctrl-C in the terminal is for the trainer only
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr  # all three are pipes
        self._pipes = (self.process.stdin, self.process.stdout, self.process.stderr)
        self.stdin, self.stdout, self._stderr = (pipe.fileno() for pipe in self._pipes)
        os.set_blocking(self.stdin, False)
        self._incoming, self._outgoing = bytearray(), bytearray(encode(settings))
        self.ready = False
        self.job: int | None = None  # its index in the call
        self.frame = b""
        self.began = False
        self.deadline = time.monotonic() + START_SECONDS

    @property
    def idle(self) -> bool:
        """Waiting for a job."""
        return self.ready and self.job is None

    @property
    def writing(self) -> bool:
        """There is more to send."""
        return bool(self._outgoing)

    def give(self, index: int, frame: bytes, wall_seconds: float) -> None:
        """Hand over a job; what the pipe does not take at once is left for :meth:`write`."""
        self.job, self.frame, self.began = index, frame, False
        self.deadline = time.monotonic() + wall_seconds
        self._outgoing += frame
        self.write()

    def write(self) -> None:
        """Send what the pipe takes. A dead worker is noticed when it is read from."""
        try:
            sent = os.write(self.stdin, self._outgoing)
            del self._outgoing[:sent]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._outgoing.clear()

    def read(self) -> tuple[bool, list[Any]]:
        """(alive, whole messages that have come in)."""
        chunk = os.read(self.stdout, 1 << 16)
        self._incoming += chunk
        messages = []
        try:
            while (message := decode(self._incoming)) is not None:
                messages.append(message)
        except ValueError:  # not a frame: whatever wrote this is not our worker any more
            return False, messages
        return bool(chunk), messages

    def end(self) -> tuple[int, str]:
        """Make sure that it is dead; its exit status (negative: signal) and the last it wrote to stderr."""
        try:
            status = self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            status = self.kill()
        said = b""
        if not self.ready:
            os.set_blocking(self._stderr, False)
            said = self._pipes[2].read(1 << 16) or b""
        self.close()
        return status, said.decode(errors="replace").strip()

    def kill(self) -> int:
        """Kill and reap it; its exit status."""
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """Let go of the pipes."""
        for pipe in self._pipes:
            pipe.close()
