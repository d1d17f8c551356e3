"""One run, one directory: from before anything is written to the very end only one run writes run.directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from bridge_mcore.checkpoint import atomic
from bridge_mcore.config.checks import holds_run
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import BridgeError, ConfigError
from bridge_mcore.monitoring.progress import say
from bridge_mcore.platform.locks import POLL_SECONDS, FileLock
from bridge_mcore.training.run_directory import set_aside

#: Held by rank 0, with the name of who holds it; and by every rank, so that a rank that outlives rank 0 is seen.
LOCK, RANKS = ".lock", ".ranks"
#: Seconds after which waiting ranks hear of rank 0 again: well below any collective's time limit.
_ROUND_SECONDS = 30.0


class _RunLock:
    """Rank 0's part."""

    def __init__(self, config: Config) -> None:
        self.directory, self.resume = config.run.directory, config.run.resume
        # Only who goes on with a run has a reason to wait for the process that still writes it.
        self.wait_seconds = 0.0 if self.resume in ("never", "restart") else config.run.wait_seconds
        self.deadline = time.monotonic() + self.wait_seconds
        self.said = False
        self.lock = self._new()
        #: of sync.directory, where the configuration names one: two runs there would serve each other's weights
        self.sync: FileLock | None = None
        if config.sync.directory is not None and config.rollout.engine != "embedded":
            self.sync = FileLock(config.sync.directory / LOCK, f"sync.directory = {config.sync.directory}", say)

    def _new(self) -> FileLock:
        return FileLock(self.directory / LOCK, f"run.directory = {self.directory}", say)

    def take(self) -> bool:
        """Take the lock and put an old run aside, if that is wanted; False: ask again. Raises ConfigError."""
        _make(self.directory, "run.directory")
        end = min(self.deadline, time.monotonic() + _ROUND_SECONDS)
        while (why := self._attempt()) is not None:
            if time.monotonic() >= self.deadline:
                waited = f", also after {self.wait_seconds:g} s (run.wait_seconds)" if self.wait_seconds else ""
                raise ConfigError(
                    f"run.directory = {self.directory} is being written by {why}{waited}: wait for that run or end it, "
                    "or choose another run.directory"
                )
            if not self.said:
                self.said = True
                say(f"· {self.directory} is being written by {why}: waiting up to {self.wait_seconds:g} s for its end")
            if time.monotonic() >= end:
                return False
            time.sleep(POLL_SECONDS)
        if self.resume == "never" and holds_run(self.directory):
            raise ConfigError(
                f"run.directory = {self.directory} holds a run, which has just ended; set run.resume=auto to go on "
                "with it, or choose another run.directory"
            )
        if self.resume == "restart":
            self._restart()
        if self.sync is not None:
            _make(self.sync.path.parent, "sync.directory")
            self.sync.acquire()
        return True

    def release(self) -> None:
        """Give all back."""
        if self.sync is not None:
            self.sync.release()
        self.lock.release()

    def _attempt(self) -> str | None:
        """Who keeps us from writing; None: nobody any more."""
        holder = self.lock.attempt()
        if holder is not None:
            return str(holder)
        if not _alone(self.directory / RANKS):
            self.lock.release()
            return "ranks of a run whose first rank has ended, on this host or others"
        return None

    def _restart(self) -> None:
        """Put the old run aside under its lock, and take the lock of a directory that is new."""
        old = set_aside(self.directory)
        if old is None:
            return
        say(f"· an earlier run is kept in {old}")
        self.lock.path = old / LOCK
        _make(self.directory, "run.directory")
        before, self.lock = self.lock, self._new()
        try:
            if (holder := self.lock.attempt()) is not None:
                raise ConfigError(f"run.directory = {self.directory} was taken meanwhile by {holder}; choose another")
        finally:
            before.release()


def _make(directory: Path, key: str) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{key} = {directory} cannot be made: {error.strerror}; choose another directory") from error


def _alone(path: Path) -> bool:
    """Whether no rank of another run holds its share; True where that cannot be known."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # no locks: the beat of rank 0 is all there is
    finally:
        os.close(fd)
    return True


def _share(path: Path) -> int | None:
    """This rank's share, until it ends."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return fd
    return None


@contextmanager
def run_lock(config: Config) -> Iterator[None]:
    """Within it this run alone writes run.directory, which exists. Collective; rank 0 acts.

    With run.resume=auto or a checkpoint it waits run.wait_seconds for a process that still writes there. With `restart`
    the old run is put aside, once it is known that nobody writes it. Raises ConfigError on every rank if the directory
    is not to be had.
    """
    mine = _RunLock(config) if atomic.is_main() else None
    share = None
    try:
        while not _together(mine.take if mine is not None else None):
            pass
        share = _share(config.run.directory / RANKS)
        yield
    finally:
        if share is not None:
            os.close(share)
        if mine is not None:
            mine.release()


def _together(take: Callable[[], bool] | None) -> bool:
    """What rank 0's `take` returns or raises, on all ranks."""
    box: list[bool | str] = [False]
    failure: BaseException | None = None
    try:
        if take is not None:
            box = [take()]
    except (BridgeError, OSError) as error:
        failure = error
        box = [str(error)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(box)
    if isinstance(box[0], str):
        raise ConfigError(box[0]) from failure
    return box[0]
