"""Who writes a directory: a lock that names its holder, ends with it, and does not trust a file system's locks alone.

Two things together, because neither is enough. `flock` ends with its process, whatever kills it, but some file systems
have none (ENOLCK, ENOSYS), and others keep it on each host to itself (NFS with nolock, Lustre with localflock). So the
holder also writes a beat into the file; whoever comes from another kernel, or where there are no locks, watches whether
that goes on.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bridge_mcore.errors import BridgeError, ConfigError, TrainingError

#: Seconds between two beats of a holder, and beats that may be missing before it is taken as dead.
BEAT_SECONDS, MISSED_BEATS = 10.0, 6
POLL_SECONDS = 0.2
#: How file systems say that they have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Holder:
    """What a lock's file says of the process that holds it. `since`: local time; `job`: the scheduler's number."""

    host: str
    process: int
    since: str
    job: str = ""
    kernel: str = ""
    token: str = ""
    beat: int = 0
    beat_seconds: float = BEAT_SECONDS

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job} since {self.since}"


class LockHeld(ConfigError):
    """Another process holds the lock; the text names it."""


def _me(beat_seconds: float) -> Holder:
    job = next((os.environ[name] for name in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if os.environ.get(name)), "")
    return Holder(
        socket.gethostname(), os.getpid(), time.strftime("%F %T"), job, _kernel(), secrets.token_hex(8), 0, beat_seconds
    )


def _kernel() -> str:
    """Something that differs from any other machine's, and from this one's before it was started anew."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class FileLock:
    """A lock on `path`, whose directory exists. `subject` is what it protects, in the words of the error.

    Usable as a context manager, which acquires without waiting. Should another process take it over all the same (this
    one was suspended, or its file system answered nobody, for longer than a holder may be silent), `on_lost` is called
    from a thread; the default ends the process at once, because two must not write.
    """

    def __init__(
        self,
        path: Path,
        subject: str,
        say: Callable[[str], None] = print,
        *,
        beat_seconds: float = BEAT_SECONDS,
        on_lost: Callable[[Holder], None] | None = None,
    ) -> None:
        self.path, self.subject, self.say = Path(path), subject, say
        self.beat_seconds = beat_seconds
        self._on_lost = on_lost or self._end_at_once
        self._fd: int | None = None
        self._is_flocked = False
        self._mine: Holder | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self, wait_seconds: float = 0.0) -> None:
        """Take it; a dead holder's is taken over. Raises LockHeld if it is not free after `wait_seconds`."""
        deadline = time.monotonic() + wait_seconds
        said = False
        while (holder := self.attempt()) is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                waited = f" (waited {wait_seconds:g} s for it to end)" if wait_seconds else ""
                raise LockHeld(
                    f"{self.subject} is being written by {holder}{waited}; wait for it, or choose another place"
                )
            if not said:
                self.say(
                    f"· {self.subject} is being written by {holder}: waiting up to {wait_seconds:g} s for it to end"
                )
                said = True
            time.sleep(min(POLL_SECONDS, left))

    def attempt(self) -> Holder | None:
        """Take it now; or who has it. A dead holder's is taken over."""
        holder = self._try()
        if holder is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._beat, name=f"lock {self.path.name}", daemon=True)
            self._thread.start()
        return holder

    def release(self) -> None:
        """Give it back. May be called twice."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._fd is None:
            return
        with suppress(OSError):  # another's file may stand there by now
            if os.fstat(self._fd).st_ino == os.stat(self.path).st_ino and _read(self._fd) == self._mine:
                self.path.unlink()
        os.close(self._fd)
        self._fd = None

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # --- one attempt -------------------------------------------------------------------------------------------------

    def _try(self) -> Holder | None:
        """Take it, or return who has it."""
        while True:
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            except OSError as error:
                raise ConfigError(
                    f"{self.path} cannot be made ({error.strerror}), so {self.subject} cannot be locked"
                ) from error
            try:
                taken = self._lock(fd)
                if taken and os.fstat(fd).st_ino != os.stat(self.path).st_ino:
                    raise FileNotFoundError  # whoever had it before has just removed it
            except FileNotFoundError:
                os.close(fd)
                continue
            break
        try:
            holder = self._holder(fd) if not taken else self._living(fd)
            if holder is None:
                holder = self._claim(fd)
        except OSError as error:
            self.path.unlink(missing_ok=True)  # it is ours, and says nothing
            os.close(fd)
            raise self._unwritten(error) from error
        except BaseException:
            os.close(fd)
            raise
        if holder is not None:
            os.close(fd)
            return holder
        self._fd = fd
        return None

    def _unwritten(self, error: OSError) -> BridgeError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return TrainingError(f"the disk is full: {self.path} was not written; free some space")
        return ConfigError(f"{self.path} cannot be written ({error.strerror}), so {self.subject} cannot be locked")

    def _lock(self, fd: int) -> bool:
        """Whether the file system leaves it to us; True too where it has no locks."""
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_flocked = True
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._is_flocked = False
        return True

    def _holder(self, fd: int) -> Holder:
        """Who has it; the record is written a moment after the lock is taken."""
        for _ in range(5):
            if (found := _read(fd)) is not None:
                return found
            time.sleep(0.05)
        return Holder("an unknown host", 0, "just now")

    def _living(self, fd: int) -> Holder | None:
        """The holder that the file names, if it lives where our locks do not reach. Returns when that is known."""
        found = _read(fd)
        if found is None or (self._is_flocked and found.kernel == _kernel()):
            return None
        patience = MISSED_BEATS * found.beat_seconds
        self.say(
            f"· {self.subject} was last written by {found}: looking for up to {patience:g} s whether that still lives"
        )
        end = time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(min(POLL_SECONDS, patience / 10))
            now = self._owner()
            if now is None:
                return None  # it has ended
            if (now.token, now.beat) != (found.token, found.beat):
                return now
        self.say(f"· nothing has been heard of it for {patience:g} s: taking over")
        return None

    def _claim(self, fd: int) -> Holder | None:
        """Write our name; without locks, wait whether another one does so too: the last one has it."""
        self._mine = _me(self.beat_seconds)
        _write(fd, self._mine)
        if self._is_flocked:
            return None
        self.say(
            f"· {self.path.parent} is on a file system without locks: its writer is told by a beat in {self.path.name}"
        )
        time.sleep(10 * POLL_SECONDS)
        owner = self._owner()
        return owner if owner is not None and owner.token != self._mine.token else None

    # --- while it is held --------------------------------------------------------------------------------------------

    def _owner(self) -> Holder | None:
        """Whom the file names now. Opened anew: a network file system looks at its server only then."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return _read(fd)
        finally:
            os.close(fd)

    def _beat(self) -> None:
        assert self._mine is not None
        while not self._ended.wait(self.beat_seconds):
            owner = self._owner()
            if owner is not None and owner.token != self._mine.token:
                self._on_lost(owner)
                return
            self._mine = replace(self._mine, beat=self._mine.beat + 1)
            with suppress(OSError):  # a full disk, a server away: the next one may come through
                if not self.path.exists():
                    self._put_back()
                assert self._fd is not None
                _write(self._fd, self._mine)

    def _put_back(self) -> None:
        """Somebody has removed the file: without it the next one to come would find nothing to wait for."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if not self._lock(fd):  # another one was quicker; its record says so at the next beat
            os.close(fd)
            return
        assert self._fd is not None
        os.close(self._fd)
        self._fd = fd

    def _end_at_once(self, owner: Holder) -> None:
        print(
            f"error: {self.subject} has been taken over by {owner}, while nothing was heard of this process; it ends "
            "without another write",
            file=sys.stderr,
            flush=True,
        )
        os._exit(3)


def _read(fd: int) -> Holder | None:
    """The record in a lock's file; None if there is none that can be read."""
    try:
        found: Any = json.loads(os.pread(fd, 4096, 0))
        texts = {name: _printable(found[name]) for name in ("host", "since", "job", "kernel", "token")}
        period = min(max(float(found["beat_seconds"]), 0.01), BEAT_SECONDS)
        return Holder(process=int(found["process"]), beat=int(found["beat"]), beat_seconds=period, **texts)
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _printable(value: object) -> str:
    return "".join(c for c in str(value)[:120] if c.isprintable())


def _write(fd: int, holder: Holder) -> None:
    data = json.dumps(asdict(holder)).encode()
    os.pwrite(fd, data, 0)
    os.ftruncate(fd, len(data))
