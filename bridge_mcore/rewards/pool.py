"""A pool of killable worker processes, for code that may run for ever, crash or eat the memory.

Differences from :class:`concurrent.futures.ProcessPoolExecutor`, and why:

* A job has its own limits of CPU time, wall time and memory (see :mod:`bridge_mcore.rewards.worker`); a worker that
  exceeds one dies alone. Its job gets an outcome of its own, the worker is replaced, and no other job is touched.
* Workers are started by path with :class:`subprocess.Popen`. They never see the parent's ``__main__`` (which
  multiprocessing would import again, and which a notebook or ``python - <<EOF`` cannot offer), never import torch, and
  are not forked from a process that holds threads, locks or a GPU.
* No signals are used here, so any thread may call; calls from several threads take turns.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.rewards.process import START_SECONDS, WorkerProcess
from bridge_mcore.rewards.worker import MAX_FRAME, encode

_PACKAGE_ROOT = Path(__file__).parents[2]
#: Starts in a row that may fail before the pool gives up.
START_ATTEMPTS = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one job.

    ``done``: ``value`` is what the function returned; ``retired`` tells that the job took so much memory that the
    worker was replaced, so that a failure which the function hides may be for want of memory. ``raised``, ``timeout``,
    ``crashed``: ``reason`` says how.
    """

    kind: Literal["done", "raised", "timeout", "crashed"]
    value: Any = None
    reason: str = ""
    retired: bool = False


def _end_all(workers: list[WorkerProcess], owner: int) -> None:
    """Kill and reap ``workers``; in a forked copy of their owner, only let go of the pipes."""
    for worker in workers:
        if os.getpid() == owner:
            worker.kill()
        worker.close()
    workers.clear()


class Pool:
    """Runs ``target`` on jobs in up to ``workers`` processes, which start at the first call and then stay.

    :param target: ``"module:function"``, imported in the worker. The function takes and returns what JSON can carry. A
        function ``warm_up()`` in the module is called once, before any job is timed.
    :param cpu_seconds: CPU seconds (user and system, all threads) of one job.
    :param wall_seconds: seconds of one job from hand-over to reply; a backstop, far above ``cpu_seconds``.
    :param memory_gib: address space of one worker in GiB.
    :raises ConfigError: a limit that is not positive.
    """

    def __init__(
        self,
        target: str,
        workers: int = 2,
        cpu_seconds: float = 5.0,
        wall_seconds: float = 60.0,
        memory_gib: float = 2.0,
    ) -> None:
        limits = {
            "workers": workers,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_gib": memory_gib,
        }
        for name, value in limits.items():
            if not 0 < value < 1e9:  # also refuses NaN and infinity
                raise ConfigError(f"{name} is {value}; give a positive number")
        self.limits = limits
        self._size = int(workers)
        self._settings = {
            "target": target,
            "path": [str(_PACKAGE_ROOT), *(os.path.abspath(entry) for entry in sys.path if entry)],
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "memory_bytes": int(memory_gib * (1 << 30)),
        }
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        """A pool without workers that belongs to this process."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._workers: list[WorkerProcess] = []
        self._failed_starts = 0
        # Runs when the pool is collected, and at exit.
        self._finalizer = weakref.finalize(self, _end_all, self._workers, self._owner)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are up, for monitoring."""
        return [worker.process.pid for worker in self._workers]

    def map(self, jobs: Sequence[Any]) -> list[Outcome]:
        """The outcome of every job, in order.

        :raises BridgeError: workers cannot be started, or the pool is closed.
        """
        if os.getpid() != self._owner:  # forked: the workers, and perhaps a held lock, are the parent's
            self._finalizer()
            self._reset()
        with self._lock:
            if self._closed:
                raise BridgeError("this worker pool is closed; make a new one")
            outcomes: dict[int, Outcome] = {}
            waiting: deque[tuple[int, bytes]] = deque()
            retried: set[int] = set()
            for index, job in enumerate(jobs):
                frame = encode({"id": index, "job": job})
                if len(frame) > MAX_FRAME:
                    outcomes[index] = Outcome("raised", reason=f"the input is longer than {MAX_FRAME >> 20} MiB")
                else:
                    waiting.append((index, frame))
            try:
                while waiting or any(worker.job is not None for worker in self._workers):
                    self._assign(waiting)
                    self._collect(outcomes, waiting, retried)
            except BaseException:  # Ctrl-C above all: a late reply must not meet the next call's jobs
                self._drop([worker for worker in self._workers if not worker.idle])
                raise
            return [outcomes[index] for index in range(len(jobs))]

    def close(self) -> None:
        """End the workers. May be called twice."""
        with self._lock:
            self._closed = True
            self._finalizer()

    def _drop(self, workers: list[WorkerProcess]) -> None:
        for worker in workers:
            self._workers.remove(worker)
        _end_all(workers, self._owner)

    def _assign(self, waiting: deque[tuple[int, bytes]]) -> None:
        """Hand jobs to idle workers; start workers while there are more jobs than hands."""
        # Spares the job a second hand-over.
        self._drop([worker for worker in self._workers if worker.idle and worker.process.poll() is not None])
        for worker in self._workers:
            if worker.idle and waiting:
                worker.give(*waiting.popleft(), self.limits["wall_seconds"])
        starting = sum(not worker.ready for worker in self._workers)
        while len(self._workers) < self._size and starting < len(waiting):
            try:
                self._workers.append(WorkerProcess(self._settings))
            except OSError as error:
                raise BridgeError(
                    f"cannot start a worker process: {error}. Free memory, processes or file descriptors (ulimit -a), "
                    "or ask for fewer workers"
                ) from error
            starting += 1

    def _collect(self, outcomes: dict[int, Outcome], waiting: deque[tuple[int, bytes]], retried: set[int]) -> None:
        """Wait until a worker says something, dies or runs out of time; note what became of its job."""
        busy = [worker for worker in self._workers if not worker.idle]
        poll = select.poll()
        for worker in busy:
            poll.register(worker.stdout, select.POLLIN)
            if worker.writing:
                poll.register(worker.stdin, select.POLLOUT)
        first = min(worker.deadline for worker in busy)
        events = {fd for fd, _ in poll.poll(max(0.0, first - time.monotonic()) * 1000 + 1)}
        for worker in busy:
            if worker.stdin in events:
                worker.write()
            if worker.stdout in events:
                alive, messages = worker.read()
                for message in messages:
                    self._receive(worker, message, outcomes)
                if alive or worker not in self._workers:
                    continue
                if worker.job is not None and not worker.began and worker.job not in retried:
                    # It had died, or was dying, when the job was handed over. Once only: reading it may be what kills.
                    retried.add(worker.job)
                    waiting.appendleft((worker.job, worker.frame))
                    worker.job = None
                job, frame = worker.job, worker.frame
                if self._bury(worker, outcomes, job not in retried) and job is not None:
                    retried.add(job)
                    waiting.appendleft((job, frame))
            elif time.monotonic() >= worker.deadline:
                self._overdue(worker, outcomes)

    def _receive(self, worker: WorkerProcess, message: dict[str, Any], outcomes: dict[int, Outcome]) -> None:
        if "ready" in message:
            worker.ready, self._failed_starts = True, 0
            return
        if "began" in message:
            worker.began = True
            return
        index, worker.job = worker.job, None
        assert index is not None and message["id"] == index, f"reply to job {message['id']} while {index} was running"
        if message.get("memory"):
            outcomes[index] = Outcome(
                "crashed", reason=f"it needed more than {self.limits['memory_gib']:g} GiB of memory"
            )
        elif "error" in message:
            outcomes[index] = Outcome("raised", reason=message["error"], retired=message["retire"])
        else:
            outcomes[index] = Outcome("done", message["value"], retired=message["retire"])
        if message["retire"]:
            self._drop([worker])

    def _bury(self, worker: WorkerProcess, outcomes: dict[int, Outcome], may_repeat: bool) -> bool:
        """Take account of a dead worker. True if its job is to be given to another."""
        self._workers.remove(worker)
        status, said = worker.end()
        if not worker.ready:
            self._start_failed(f"it ended with {_describe(status)}" + (f":\n{said[-2000:]}" if said else ""))
        elif worker.job is not None:
            if status == -signal.SIGIO and may_repeat:
                # SIGIO says that this process had died. It has not: where cores are scarce the kernel can announce the
                # request itself so late that the worker, which has read it by then, is already watching the pipe.
                return True
            if status == -signal.SIGPROF:
                outcome = Outcome("timeout", reason=f"it took more than {self.limits['cpu_seconds']:g} s of CPU time")
            elif status == -signal.SIGALRM:
                outcome = self._too_long()
            else:
                outcome = Outcome("crashed", reason=f"its worker process ended with {_describe(status)}")
            outcomes[worker.job] = outcome
        return False

    def _overdue(self, worker: WorkerProcess, outcomes: dict[int, Outcome]) -> None:
        self._drop([worker])
        if worker.job is not None:
            outcomes[worker.job] = self._too_long()
        else:
            self._start_failed(f"it was not ready after {START_SECONDS:g} s")

    def _too_long(self) -> Outcome:
        return Outcome("timeout", reason=f"it took longer than {self.limits['wall_seconds']:g} s")

    def _start_failed(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= START_ATTEMPTS:
            self._failed_starts = 0
            raise BridgeError(
                f"worker processes of the verifier do not start ({self._settings['target']}; {START_ATTEMPTS} tries): "
                f"{why}\nIs the package installed whole (pip install bridge-mcore), is there memory, and is memory_gib "
                f"({self.limits['memory_gib']:g}) large enough?"
            )


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return name + (" (killed from outside, perhaps for want of memory)" if name == "SIGKILL" else "")
