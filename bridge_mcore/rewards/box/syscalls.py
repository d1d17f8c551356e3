"""The system calls that a candidate program may make, as a seccomp filter.

A list of what is allowed, so that a call nobody thought of (io_uring, bpf, keyctl, the next kernel's) is refused too.
Refused calls fail with EPERM rather than kill: a program that tries `socket()` sees a PermissionError and goes on.
What it amounts to: no new process, no new program, no socket, no signal to another process, no mount, no namespace, no
tracing, no change of owner or mode. Numbers are those of Linux's `asm/unistd_64.h` and `asm-generic/unistd.h`.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct

#: Allowed with any arguments: name -> number on (x86_64, aarch64); None where the architecture does not have it.
ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # files: which ones is decided by the mounts, by Landlock and by the user id
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "pipe": (22, None),
    "select": (23, None),
    "dup": (32, 23),
    "dup2": (33, None),
    "flock": (73, 32),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "ftruncate": (77, 46),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "fchdir": (81, 50),
    "rename": (82, None),
    "mkdir": (83, None),
    "rmdir": (84, None),
    "creat": (85, None),
    "unlink": (87, None),
    "readlink": (89, None),
    "umask": (95, 166),
    "statfs": (137, 43),
    "fstatfs": (138, 44),
    "getdents64": (217, 61),
    "fadvise64": (221, 223),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "renameat2": (316, 276),
    "statx": (332, 291),
    "close_range": (436, 436),
    "faccessat2": (439, 439),
    # memory
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "msync": (26, 227),
    "madvise": (28, 233),
    # its own signals, threads and clocks
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_yield": (24, 124),
    "pause": (34, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "alarm": (37, None),
    "setitimer": (38, 103),
    "exit": (60, 93),
    "wait4": (61, 260),
    "gettimeofday": (96, 169),
    "times": (100, 153),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133),
    "sigaltstack": (131, 132),
    "time": (201, None),
    "futex": (202, 98),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "waitid": (247, 95),
    "set_robust_list": (273, 99),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    # questions about itself and the machine
    "getpid": (39, 172),
    "uname": (63, 160),
    "getrlimit": (97, 163),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "sched_getparam": (143, 121),
    "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125),
    "sched_get_priority_min": (147, 126),
    "gettid": (186, 178),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
}
#: Allowed with some arguments only; see :func:`program`.
CHECKED = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "prlimit64": (302, 261),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|…, BPF_RET|K
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data, low words
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080  # CLONE_NEW*, with CLONE_NEWTIME
_PRCTL_NAMES = (15, 16)  # PR_SET_NAME, PR_GET_NAME
# F_DUPFD, F_GETFD … F_SETLKW, F_DUPFD_CLOEXEC. Not F_SETOWN and F_SETSIG: with O_ASYNC they send any signal anywhere.
_FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# TCGETS (isatty), TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def program(pid: int, machine: str | None = None) -> bytes | None:
    """The filter as BPF instructions, for a process whose id in its own namespace is ``pid``.

    None for a machine whose system call numbers are not listed here.
    """
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    column, arch = known
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),  # another architecture's table (int 0x80): its numbers mean other calls
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, 0x40000000),  # x32's numbers
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]

    def when(name: str, body: list[tuple[int, int, int, int]]) -> None:
        code.append((_EQUAL, 0, len(body), CHECKED[name][column]))
        code.extend(body)

    def only(offset: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        checks = [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        return [(_LOAD, 0, 0, offset), *checks, (_RETURN, 0, 0, _ERRNO | errno.EPERM), (_RETURN, 0, 0, _ALLOW)]

    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    when(
        "clone",  # threads, but no processes
        [
            (_LOAD, 0, 0, _ARGUMENT_0),
            (_ANY_BIT, 1, 0, _CLONE_NAMESPACES),
            (_ANY_BIT, 1, 0, _CLONE_THREAD),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
            (_RETURN, 0, 0, _ALLOW),
        ],
    )
    # Its flags are in memory, where a filter cannot look; told that there is no clone3, the C library uses clone.
    when("clone3", [(_RETURN, 0, 0, _ERRNO | errno.ENOSYS)])
    when("kill", only(_ARGUMENT_0, (pid,)))
    when("tgkill", only(_ARGUMENT_0, (pid,)))
    when("prlimit64", only(_ARGUMENT_0, (0, pid)))
    when("prctl", only(_ARGUMENT_0, _PRCTL_NAMES))
    when("fcntl", only(_ARGUMENT_1, _FCNTLS))
    when("ioctl", only(_ARGUMENT_1, _IOCTLS))
    code.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


_NO_PID = 0x7A5A5A5A  # stands for the process in a prepared filter; above the largest id there can be


@functools.cache
def prepared() -> bytes | None:
    """The filter for this machine, made once: in Python that takes longer than all else that a process needs."""
    return program(_NO_PID)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def restrict() -> None:
    """Install the filter on this process, for good. Needs no_new_privs.

    :raises OSError: the kernel has no seccomp filters, or forbids them.
    """
    code = prepared()
    if code is None:
        raise OSError(errno.ENOSYS, f"no system call numbers for {platform.machine()}")
    code = code.replace(struct.pack("=I", _NO_PID), struct.pack("=I", os.getpid()))
    buffer = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None, use_errno=True)
    filters = _Program(len(code) // 8, ctypes.addressof(buffer))
    if libc.prctl(22, 2, ctypes.byref(filters), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
