"""Calls into the Linux kernel that Python 3.11 does not offer: namespaces, mounts, capabilities, Landlock.

Numbers and structures are those of `linux/sched.h`, `linux/mount.h`, `linux/prctl.h`, `linux/capability.h` and
`linux/landlock.h`. Every function raises OSError if the kernel refuses.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Sequence

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
# The same on every architecture.
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 442, 444, 445, 446
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, what: str, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments), what)


def unshare(flags: int) -> None:
    """Leave the namespaces in ``flags`` for new ones."""
    _checked(_libc.unshare(flags), "unshare")


def prctl(option: int, value: int = 0) -> None:
    """`prctl(2)` with one argument."""
    zero = ctypes.c_ulong(0)
    _checked(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends; at once if it is no longer ``parent``."""
    prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
    if os.getppid() != parent:
        os._exit(0)


def forbid_new_privileges() -> None:
    """No set-user-id program gives this process or its children anything."""
    prctl(38, 1)  # PR_SET_NO_NEW_PRIVS


def hide_memory() -> None:
    """No other process of the same user may trace this one or read its memory."""
    prctl(4, 0)  # PR_SET_DUMPABLE


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs."""
    prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def drop_capabilities(machine: str) -> None:
    """Give up every capability, also those that a program run later could gain."""
    zero = ctypes.c_ulong(0)
    for capability in range(64):
        if _libc.prctl(24, ctypes.c_ulong(capability), zero, zero, zero) < 0:  # PR_CAPBSET_DROP
            break  # beyond the last one, or not allowed to: then what is left is nothing that could be gained
    with contextlib.suppress(OSError):
        prctl(47, 4)  # PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))  # _LINUX_CAPABILITY_VERSION_3
    _syscall(_SYS_CAPSET[machine], "capset", header, ctypes.create_string_buffer(bytes(24)))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """`mount(2)`."""
    what = f"mount {target}"
    arguments = (source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), data.encode() or None)
    _checked(_libc.mount(*arguments), what)


def mount_tmpfs(target: str, bytes_: int, inodes: int, mode: int) -> None:
    """A file system in memory of bounded size."""
    size = max(bytes_, 1 << 16)
    mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size},nr_inodes={inodes},mode={mode:o}")


def make_mounts_private() -> None:
    """No mount made from here on is seen outside."""
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def bind_read_only(source_fd: int, target: str) -> None:
    """Show what ``source_fd`` (O_PATH) is at ``target``, to read only, with everything mounted below it."""
    mount(f"/proc/self/fd/{source_fd}", target, None, _MS_BIND | _MS_REC)
    # struct mount_attr: set RDONLY, NOSUID, NODEV; clear nothing; keep propagation; no user namespace
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", 1 | 2 | 4, 0, 0, 0), 32)
    recursive = 0x8000  # AT_RECURSIVE
    try:
        _syscall(_SYS_MOUNT_SETATTR, "mount_setattr", -100, target.encode(), recursive, attributes, ctypes.c_size_t(32))
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before Linux 5.12: the top mount only
            raise
        locked = os.statvfs(target).f_flag & _MS_NOEXEC
        mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | locked)


def bind_device(source_fd: int, target: str) -> None:
    """Show a device at ``target``, which is an empty file."""
    mount(f"/proc/self/fd/{source_fd}", target, None, _MS_BIND)


def remount_read_only(target: str) -> None:
    """Nothing more is written to the mount at ``target``."""
    mount("none", target, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def unmount(target: str) -> None:
    """Take a mount away, even if something still holds it."""
    _checked(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def pivot_root(new_root: str, machine: str) -> None:
    """Make ``new_root``, a mount, the root of everything, and let go of the old one."""
    os.chdir(new_root)
    _syscall(_SYS_PIVOT_ROOT[machine], "pivot_root", b".", b".")  # the old root now lies over the new one
    _checked(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 where there is none."""
    return max(0, _libc.syscall(ctypes.c_long(_SYS_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


_EXECUTE, _READ_FILE, _READ_DIR = 1, 4, 8
_READ_ALL, _WRITE_ALL_V1 = _READ_FILE | _READ_DIR, (1 << 13) - 1
_DEVICE_ACCESS = _READ_FILE | 2  # and WRITE_FILE


def landlock(version: int, readable: Sequence[str], writable: Sequence[str], devices: Sequence[str]) -> None:
    """Forbid this process all files but ``readable``, ``writable`` (both: everything below) and ``devices``, for good.

    Nothing may be executed. With ABI 4 TCP is forbidden too, with 6 signals to processes and abstract sockets outside.
    """
    access = _WRITE_ALL_V1
    access |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    attributes = struct.pack("=QQQ", access, 3, 3)[:size]
    rules = os.fdopen(
        _syscall(_SYS_LANDLOCK_CREATE, "landlock", attributes, ctypes.c_size_t(size), ctypes.c_uint(0)), "wb"
    )
    with rules:
        may_write = access & ~_EXECUTE & ~(1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 15)  # plain files only
        for paths, allowed in ((readable, _READ_ALL), (writable, may_write), (devices, _DEVICE_ACCESS)):
            for path in paths:
                _allow(rules.fileno(), path, allowed)
        _syscall(_SYS_LANDLOCK_RESTRICT, "landlock", ctypes.c_int(rules.fileno()), ctypes.c_uint(0))


def _allow(rules: int, path: str, allowed: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or not to be seen by this user: nothing to allow
        return
    try:
        if not os.path.isdir(path):
            allowed &= _DEVICE_ACCESS
        rule = struct.pack("=Qi", allowed, fd)
        _syscall(_SYS_LANDLOCK_ADD, "landlock", ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint(0))
    finally:
        os.close(fd)
