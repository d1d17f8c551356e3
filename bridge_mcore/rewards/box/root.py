"""The file system of the box."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Any

from bridge_mcore.rewards.box import kernel

#: Where a program may write.
SCRATCH = "/scratch"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def build_root(settings: dict[str, Any], machine: str) -> None:
    """A root of its own: Python's library and the C library to read, devices, and a scratch folder of bounded size."""
    kernel.make_mounts_private()
    sources = [path for path in settings["readable"] if os.path.exists(path)]
    links = {path: os.readlink(path) for path in sources if os.path.islink(path)}
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in sources if path not in links}
    devices = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in DEVICES if os.path.exists(path)}
    root = next(path for path in ("/tmp", "/mnt", "/var", "/opt") if os.path.isdir(path))
    kernel.mount_tmpfs(root, 1 << 20, 1024, 0o755)
    for path, fd in opened.items():
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            os.makedirs(root + path, exist_ok=True)
        else:
            _touch(root + path)
        kernel.bind_read_only(fd, root + path)
        os.close(fd)
    for path, target in links.items():
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, fd in devices.items():
        _touch(root + path)
        with contextlib.suppress(OSError):
            kernel.bind_device(fd, root + path)
        os.close(fd)
    os.mkdir(root + SCRATCH)
    os.symlink(SCRATCH, root + "/tmp")
    kernel.pivot_root(root, machine)
    kernel.remount_read_only("/")
    new_scratch(settings)
    ctypes.CDLL(None).sethostname(b"box", 3)


def _touch(path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def new_scratch(settings: dict[str, Any]) -> None:
    """An empty scratch folder, in memory and of bounded size."""
    kernel.mount_tmpfs(SCRATCH, settings["scratch_bytes"], settings["scratch_files"], 0o777)
