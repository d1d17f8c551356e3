"""A box as the process that owns it sees it: its warden process, requests and replies."""

from __future__ import annotations

import ctypes
import functools
import os
import select
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_mcore.errors import BridgeError
from bridge_mcore.rewards.box import syscalls
from bridge_mcore.rewards.box.candidate import NOBODY
from bridge_mcore.rewards.box.frames import read_frame, write_frame

if TYPE_CHECKING:
    from bridge_mcore.rewards.sandbox import SandboxSettings

_PACKAGE_ROOT = Path(__file__).parents[3]
_START_SECONDS = 60.0
#: The box's first words: makes the packages known without running their `__init__`, then hands over to the warden.
_BOOT = """
import sys, types
for name in ("bridge_mcore", "bridge_mcore.rewards", "bridge_mcore.rewards.box"):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
from bridge_mcore.rewards.box import warden
warden.main()
"""


class BoxError(BridgeError):
    """A box that did not start or broke."""


class Box:
    """One box with its warden process. Programs run in it one at a time; not for several threads at once."""

    def __init__(self, settings: SandboxSettings, namespaces: str) -> None:
        """Start it. Raises BoxError if it cannot be had with these namespaces ("user", "root" or "none")."""
        self.settings = settings
        paths = readable_paths(settings.packages)
        use_seccomp = "seccomp" not in settings.without and seccomp_available()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", "-B", "-c", _BOOT, str(_PACKAGE_ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._replies = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            write_frame(
                self._requests,
                {
                    "namespaces": namespaces,
                    "landlock": "landlock" not in settings.without,
                    "seccomp": use_seccomp,
                    "may_drop": _world_readable(sysconfig.get_paths()["stdlib"]),
                    "readable": paths,
                    "path": package_folders() if settings.packages else [],
                    "modules": ["numpy"] if settings.packages else [],
                    "scratch_bytes": settings.scratch_mib << 20,
                    "scratch_files": 1024,
                },
            )
            reply = self._reply(_START_SECONDS)
            if "unshared" in reply:
                write_frame(self._requests, {"mapped": _map_users(self._process.pid)})
                reply = self._reply(_START_SECONDS)
        except (EOFError, OSError, ValueError, BoxError) as error:
            raise BoxError(self._broken(error)) from None
        if "failed" in reply:
            self.close()
            raise BoxError(str(reply["failed"]))
        #: what the warden says that it has; see `_enter` there
        self.layers: dict[str, Any] = reply["ready"]

    def run(self, request: dict[str, Any], hidden: bytes = b"", wall_seconds: float = 60.0) -> dict[str, Any]:
        """Run one request (see :func:`bridge_mcore.rewards.box.candidate.run`) to its end.

        :param hidden: goes to the checking process alone and is never in the memory of the program's.
        :param wall_seconds: after so long the program is ended, whatever it does.
        :raises BoxError: the box broke, or does not answer; it is of no more use.
        """
        settings = self.settings
        limits = {
            "cpu": settings.cpu_seconds,
            "wall": wall_seconds,
            "memory": settings.memory_mib << 20,
            "output": settings.output_mib << 20,
        }
        try:
            write_frame(self._requests, {**limits, **request, "test_bytes": len(hidden)})
            data = memoryview(hidden)
            while data:
                data = data[os.write(self._requests, data) :]
            return self._reply(wall_seconds + 20)
        except (EOFError, OSError, ValueError, BoxError) as error:
            raise BoxError(self._broken(error)) from None

    def close(self) -> None:
        """Kill everything in the box. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _reply(self, seconds: float) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self._replies, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise BoxError(f"no answer for {seconds:g} s")
        return read_frame(self._replies)

    def _broken(self, error: Exception) -> str:
        """What went wrong, with the last that the warden said; ends it."""
        self._process.kill()
        status = self._process.wait()
        assert self._process.stderr is not None
        said: list[str] = []
        poll = select.poll()
        poll.register(self._process.stderr, select.POLLIN)
        if poll.poll(200):
            said = os.read(self._process.stderr.fileno(), 1 << 16).decode(errors="replace").strip().splitlines()[-1:]
        self.close()
        text = str(error) or type(error).__name__
        return f"{text} (exit status {status})" + (f": {said[0][:300]}" if said else "")


@functools.cache
def seccomp_available() -> bool:
    """Whether the kernel takes filters, and the machine's system calls are known."""
    if syscalls.program(1) is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(22, 2, None, 0, 0)  # PR_SET_SECCOMP without a filter: EFAULT where there are filters
    return ctypes.get_errno() == 14


def _environment() -> dict[str, str]:
    """Of the box: nothing of the trainer's but where the loader finds libraries."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {
        **kept,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def package_folders() -> list[str]:
    """Where installed packages are."""
    paths = sysconfig.get_paths()
    return sorted({paths["purelib"], paths["platlib"]})


def readable_paths(packages: bool) -> list[str]:
    """What programs may read: Python's and the system's libraries. Parents come before what is in them."""
    paths = {f"{sys.base_prefix}/lib", sysconfig.get_paths()["stdlib"], "/etc/ld.so.cache"}
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", *(package_folders() if packages else [])}
    found = sorted(path for path in paths if os.path.exists(path))
    kept: list[str] = []
    for path in found:
        if not any(path.startswith(other + "/") and not os.path.islink(other) for other in kept):
            kept.append(path)
    return kept


def _world_readable(path: str) -> bool:
    """Whether another user can get to a folder."""
    place = Path(path)
    return all(folder.stat().st_mode & 0o001 for folder in [place, *place.parents])


def _map_users(pid: int) -> str:
    """Give a new user namespace its users; "nobody" if programs can be another user than the warden."""

    def write(name: str, text: str) -> None:
        Path(f"/proc/{pid}/{name}").write_text(text)

    user, group = os.getuid(), os.getgid()
    if user == 0:
        try:
            for name in ("uid_map", "gid_map"):
                write(name, f"0 0 1\n{NOBODY} {NOBODY} 1\n")
            return "nobody"
        except OSError:  # root of a container that has no such user
            pass
    write("setgroups", "deny")
    write("gid_map", f"{group} {group} 1")
    write("uid_map", f"{user} {user} 1")
    return "same"
