"""A sandbox for programs that a model wrote: what this machine offers, and a box that runs one program after another.

The layers are in :mod:`bridge_mcore.rewards.box`; docs/rewards.md says what they stop and what they do not. What holds
is not deduced but tried: :func:`sandbox_layers` starts a box and lets a program in it reach for the network, for files
and for processes. `python -m bridge_mcore.rewards.sandbox` shows what it found.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.box import kernel, syscalls
from bridge_mcore.rewards.box.client import Box, BoxError, readable_paths, seccomp_available


@dataclass(frozen=True)
class SandboxSettings:
    """Limits of one candidate program.

    Attributes:
        cpu_seconds: CPU seconds of one test, all threads together; a gold's own `time_limit` replaces it.
        memory_mib: address space of the program in MiB, on top of Python's own.
        output_mib: MiB that it may write to stdout, to stderr and to each file.
        scratch_mib: MiB of all files in its scratch folder, which is in memory and is emptied after each test.
        packages: installed packages (numpy, …) can be imported, not the standard library alone.
        unsafe: run even where this machine cannot keep programs from the network, from files or from other processes.
        without: layers not to use although they are there: "namespaces", "landlock", "seccomp". For tests.
    """

    cpu_seconds: float = 6.0
    memory_mib: int = 1024
    output_mib: int = 16
    scratch_mib: int = 16
    packages: bool = False
    unsafe: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("cpu_seconds", "memory_mib", "output_mib", "scratch_mib"):
            if not 0 < getattr(self, name) < 1e7:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a positive number")


@dataclass(frozen=True)
class SandboxLayers:
    """What holds a program on this machine.

    Attributes:
        namespaces: "user" (mounts, processes, network, IPC of its own, made in a user namespace), "root" (the same,
            made by root where user namespaces are forbidden), "none".
        landlock: the kernel's Landlock ABI that is used; 0: none.
        seccomp: system calls are filtered.
        user: "nobody" (programs run as another user), "same" (as the user of the trainer).
        network, files, processes: a program was found unable to reach the network, to read or write files outside, to
            leave processes behind.
        notes: why a layer is missing.
    """

    namespaces: str
    landlock: int
    seccomp: bool
    user: str
    network: bool
    files: bool
    processes: bool
    notes: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """What a program was not kept from."""
        return [name for name in ("network", "files", "processes") if not getattr(self, name)]

    def table(self) -> str:
        """For people: one layer a line, then what was tried."""
        rows = [
            ("namespaces", {"user": "yes, in a user namespace", "root": "yes, as root", "none": "no"}[self.namespaces]),
            ("Landlock", f"yes, ABI {self.landlock}" if self.landlock else "no"),
            ("system call filter", "yes" if self.seccomp else "no"),
            ("user of programs", "nobody" if self.user == "nobody" else "the trainer's"),
            *((f"kept from: {name}", "yes" if getattr(self, name) else "NO") for name in _REACHES),
            *(("note", note) for note in self.notes),
        ]
        return "\n".join(f"{name:<22} {value}" for name, value in rows)


_REACHES = ("network", "files", "processes")


@functools.lru_cache(maxsize=16)
def sandbox_layers(settings: SandboxSettings = SandboxSettings()) -> SandboxLayers:
    """What this machine offers, found out by trying (a fraction of a second, once a process).

    :raises BoxError: not even a plain process can be started.
    """
    if not sys.platform.startswith("linux"):
        raise BoxError("candidate programs need Linux; on this system use other rewards than code")
    variants = ["none"] if "namespaces" in settings.without else ["user", *(["root"] * (os.getuid() == 0)), "none"]
    notes: list[str] = []
    for namespaces in variants:
        try:
            box = Box(settings, namespaces)
        except BoxError as error:
            notes.append(f"namespaces ({namespaces}): {error}")
            continue
        try:
            return _probe(box, tuple(notes))
        except BoxError as error:
            notes.append(f"namespaces ({namespaces}): {error}")
        finally:
            box.close()
    raise BoxError("no program can be run: " + "; ".join(notes))


def require_sandbox(settings: SandboxSettings) -> SandboxLayers:
    """The layers; refuses a machine that cannot hold programs, unless `unsafe`.

    :raises ConfigError: what is missing and how to get it.
    """
    layers = sandbox_layers(settings)
    if layers.missing and not settings.unsafe:
        raise ConfigError(
            f"this machine cannot keep candidate programs from: {', '.join(layers.missing)}. Allow user namespaces "
            "(sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns=0; Docker: --security-opt "
            "seccomp=unconfined), or use a kernel with seccomp and Landlock ABI 3 (6.2); or accept it: sandbox unsafe"
            + "".join(f"\n  {note}" for note in layers.notes)
        )
    return layers


_PROBE = """
import errno, os, socket

def probe(path):
    found = {"network": True, "files": True, "processes": True}
    try:
        socket.create_connection(("127.0.0.1", 9), 2).close()
        found["network"] = False
    except OSError as error:
        found["network"] = error.errno != errno.ECONNREFUSED
    for name, flags in ((path, os.O_RDONLY), (path, os.O_WRONLY), (path + ".new", os.O_CREAT | os.O_WRONLY)):
        try:
            os.close(os.open(name, flags))
            found["files"] = False
        except OSError:
            pass
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        found["processes"] = False
    except OSError:
        pass
    return found
"""


def _probe(box: Box, notes: tuple[str, ...]) -> SandboxLayers:
    """Let a program try. Raises BoxError if it does not even run."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        path = Path(folder, "secret")
        path.write_text("secret")
        path.chmod(0o666)
        reply = box.run({"mode": "call", "program": _PROBE, "entry_point": "probe", "args": [str(path)]}, b"", 20)
    if reply["status"] != "ended":
        raise BoxError(f"a first program failed: {reply['error'] or reply['status']}")
    held = json.loads(reply["result"])
    namespaces, landlock = box.layers["namespaces"], box.layers["landlock"]
    return SandboxLayers(
        namespaces=namespaces,
        landlock=landlock,
        seccomp=box.layers["seccomp"],
        user=box.layers["user"],
        network=held["network"],
        # Before ABI 3 Landlock lets files be truncated.
        files=held["files"] and (namespaces != "none" or landlock >= 3),
        # In a process namespace of its own it may fork, and all of it ends.
        processes=held["processes"] or namespaces != "none",
        notes=notes,
    )


def confine_self() -> None:
    """Give up, for good and as far as this kernel can: network, new processes, files other than Python's libraries.

    For a worker that is about to evaluate what a model wrote. It must have opened what it needs.
    """
    kernel.forbid_new_privileges()
    if version := kernel.landlock_version():
        folders = [path for path in sys.path if os.path.isdir(path)]
        kernel.landlock(version, [*readable_paths(True), *folders], [], ["/dev/null", "/dev/urandom"])
    if seccomp_available():
        syscalls.restrict()


if __name__ == "__main__":
    print(sandbox_layers().table())
