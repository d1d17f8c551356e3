"""The process that builds the box, stays in it as its process 1, and forks each program to run.

Started by :class:`bridge_mcore.rewards.sandbox.Box` with a clean environment and two pipes. Where namespaces are to be
had there are two processes: the first enters new namespaces and waits, the second is process 1 of the new process
namespace. If either dies, or whoever started them does, the kernel kills everything in the box.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import importlib
import os
import platform
import random
import signal
import sys
import time
from typing import Any

from bridge_mcore.rewards.box import candidate, kernel, syscalls
from bridge_mcore.rewards.box.frames import read_frame, write_frame
from bridge_mcore.rewards.box.root import DEVICES, SCRATCH, build_root, new_scratch

#: Modules that programs like to use; loaded once here, they cost a program nothing.
_WARM = """
array bisect calendar cmath collections contextlib copy dataclasses datetime decimal enum fractions functools hashlib
heapq itertools json math numbers operator queue random re statistics string textwrap threading time traceback typing
"""
_STDERR_TAIL = 400
_POLL = 0.25  # longest wait in seconds between two looks at the clocks
_GRACE = 0.05
_SEALS = 1 | 2 | 4 | 8  # no seals, no shrinking, no growing, no writing


def main() -> None:
    """Serve requests from descriptor 0 on descriptor 1 until the pipe ends."""
    started_by = os.getppid()
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.umask(0o022)
    try:
        settings = read_frame(requests)
        sys.path.extend(settings["path"])
        _warm_up(settings["modules"])
        layers = _enter(settings, requests, replies, started_by)
    except EOFError:
        return
    except OSError as error:
        write_frame(replies, {"failed": f"{error.strerror or error}"})
        return
    os.dup2(null, 2)
    os.close(null)
    kernel.hide_memory()
    syscalls.prepared()
    write_frame(replies, {"ready": layers})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    gc.collect()
    gc.freeze()  # a collection in a program's process need not touch, and so copy, what was here before
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            request = read_frame(requests)
            write_frame(replies, _run(request, layers, settings, requests, replies))
    os._exit(0)


def _warm_up(modules: list[str]) -> None:
    for name in [*_WARM.split(), *modules]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    random.seed(0)


def _enter(settings: dict[str, Any], requests: int, replies: int, started_by: int) -> dict[str, Any]:
    """Enter the namespaces asked for and build the file system; what holds from here on."""
    namespaces, machine = settings["namespaces"], platform.machine()
    layers = {
        "namespaces": namespaces,
        "machine": machine,
        "landlock": kernel.landlock_version() if settings["landlock"] else 0,
        "seccomp": settings["seccomp"],
        "user": "same",
        "readable": settings["readable"],
        "devices": list(DEVICES),
        "base_bytes": _address_space(),
    }
    with contextlib.suppress(OSError):  # if memory runs out, the kernel is to choose these
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    kernel.adopt_orphans()
    if namespaces == "none":
        kernel.die_with_parent(started_by)
        if os.getuid() == 0 and settings["may_drop"]:
            layers["user"] = "nobody"
        os.chdir("/")
        return layers
    new = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    kernel.unshare(new | (kernel.CLONE_NEWUSER if namespaces == "user" else 0))
    if namespaces == "user":
        write_frame(replies, {"unshared": True})
        layers["user"] = read_frame(requests)["mapped"]
    elif os.getuid() == 0:
        layers["user"] = "nobody"
    kernel.die_with_parent(started_by)
    _become_first_process(requests, replies)
    build_root(settings, machine)
    return layers


def _address_space() -> int:
    """Bytes of address space in use, which a program's limit comes on top of."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _become_first_process(requests: int, replies: int) -> None:
    """Fork; the child, process 1 of the new namespace, returns. The parent waits for it, and they die together."""
    pid = os.fork()
    if pid == 0:
        # Its parent is outside the namespace, so its id is 0 to us, whether it lives or not; the pipe will tell.
        kernel.die_with_parent(0)
        return
    os.close(requests)
    os.close(replies)
    os.waitpid(pid, 0)
    os._exit(0)


def _run(
    request: dict[str, Any], layers: dict[str, Any], settings: dict[str, Any], requests: int, replies: int
) -> dict[str, Any]:
    """Run one request to its end, end everything that it started, and say what became of it."""
    started = time.monotonic()
    files = {name: os.memfd_create(name) for name in ("out", "err", "result")}
    opened = list(files.values())
    try:
        stdin = _sealed(request.get("stdin", ""))
        opened.append(stdin)
        closed_in_child = [requests, replies]
        if request["mode"] != "check":
            keep = [stdin, files["out"], files["err"], *([files["result"]] if request["mode"] == "call" else [])]
            processes = [_start(request, layers, keep, closed_in_child)]
        else:
            to_program, from_program = os.pipe(), os.pipe()
            pipes = [*to_program, *from_program]
            opened += pipes
            checker_out, hidden = os.memfd_create("checker"), os.memfd_create("test")
            opened += [checker_out, hidden]
            _move(requests, hidden, request["test_bytes"])
            program = {**request, "mode": "serve"}
            keep = [stdin, files["out"], files["err"], to_program[0], from_program[1]]
            checker_keep = [stdin, checker_out, checker_out, from_program[0], to_program[1], files["result"], hidden]
            checker = _start(request, layers, checker_keep, closed_in_child)
            processes = [checker, _start(program, layers, keep, closed_in_child)]
            for fd in pipes:
                os.close(fd)
                opened.remove(fd)
        ended, why = _watch(processes, request["cpu"], request["wall"])
        seconds = time.monotonic() - started
        _sweep(processes, layers)
        return {
            "status": why or ("ended" if ended == (os.CLD_EXITED, 0) else "failed"),
            "signal": ended[1] if ended and ended[0] in (os.CLD_KILLED, os.CLD_DUMPED) else 0,
            "error": _tail(files["err"]),
            "checker": _tail(checker_out) if request["mode"] == "check" else "",
            "full": _size(files["out"]) >= request["output"] or _size(files["err"]) >= request["output"],
            "stdout": "" if request["mode"] == "check" else _content(files["out"], request["output"]),
            "result": _content(files["result"], request["output"]),
            "seconds": seconds,
        }
    finally:
        for fd in opened:
            os.close(fd)
        if layers["namespaces"] != "none":
            kernel.unmount(SCRATCH)
            new_scratch(settings)


def _sealed(text: str) -> int:
    """``text`` as a file that can be read only."""
    fd = os.memfd_create("in", os.MFD_ALLOW_SEALING)
    data = memoryview(text.encode("utf-8", "surrogatepass"))
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def _move(pipe: int, file: int, count: int) -> None:
    """Move ``count`` bytes from a pipe into a file inside the kernel: they never are in this process's memory."""
    while count:
        moved = os.splice(pipe, file, count)
        if not moved:
            raise EOFError
        count -= moved
    os.lseek(file, 0, os.SEEK_SET)


def _start(request: dict[str, Any], layers: dict[str, Any], keep: list[int], close: list[int]) -> int:
    """Fork a process that has only ``keep``, as descriptors 0, 1, …; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 127
    try:
        # First above all numbers wanted, then down: a number that is still to be copied must not be overwritten.
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in keep]
        for number, fd in enumerate(high):
            os.dup2(fd, number)
        os.closerange(len(keep), 1 << 16)
        os.environ.clear()
        os.environ.update({"HOME": SCRATCH, "TMPDIR": SCRATCH, "PATH": "/usr/bin:/bin"})
        os.chdir(SCRATCH if layers["namespaces"] != "none" else "/")
        candidate.confine(request, layers)
        status = candidate.run(request)
    except BaseException as error:
        os.write(2, f"\nthe box: {candidate.describe(error)}".encode(errors="replace"))
    finally:
        os._exit(status)


def _watch(processes: list[int], cpu: float, wall: float) -> tuple[tuple[int, int] | None, str]:
    """Wait until the first process has ended, or there is a reason to end it; a moment longer for the others.

    None is reaped, so ids stay theirs. Gives how the process that runs the program (the last one) ended, as (CLD_*,
    status), None if it has not; and the reason: "time" (CPU), "wall" or nothing.
    """
    deadline, first_ended = time.monotonic() + wall, False
    ended: dict[int, tuple[int, int]] = {}
    while True:
        now = time.monotonic()
        pause = min(_POLL, deadline - now)
        if pause <= 0:
            return ended.get(processes[-1]), "" if first_ended else "wall"
        why = ""
        for pid in processes:
            if pid not in ended and (info := os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
                ended[pid] = (info.si_code, info.si_status)
            if (used := _cpu_seconds(pid)) > cpu or ended.get(pid) == (os.CLD_KILLED, signal.SIGXCPU):
                why = "time"
            pause = min(pause, max(0.002, (cpu - used) / 4))
        if why or len(ended) == len(processes):
            return ended.get(processes[-1]), why
        if processes[0] in ended and not first_ended:
            deadline, first_ended = min(deadline, now + _GRACE), True
        signal.sigtimedwait({signal.SIGCHLD}, pause)


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process: its clock, whose number the kernel makes from its id."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ESRCH):
            raise
        return 0.0


def _sweep(processes: list[int], layers: dict[str, Any]) -> None:
    """Kill whatever is left of a run, however it tried to get away, and wait for its end."""
    while True:
        if layers["namespaces"] != "none":
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everything in this namespace but process 1
        else:
            for pid in processes:  # each began a session and so a group, which only seccomp keeps it from leaving
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)
                with contextlib.suppress(ProcessLookupError):  # it had no time yet to begin one
                    os.kill(pid, signal.SIGKILL)
            processes = []  # they are reaped below, and their ids may then be others'
            _kill_children()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _kill_children() -> None:
    """Kill the children that were left to this process when their parents ended."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as children:
        for pid in children.read().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _size(fd: int) -> int:
    return os.fstat(fd).st_size


def _content(fd: int, limit: int) -> str:
    return os.pread(fd, min(_size(fd), limit), 0).decode("utf-8", "replace") if _size(fd) else ""


def _tail(fd: int) -> str:
    """The last line that has something in it."""
    size = _size(fd)
    text = os.pread(fd, _STDERR_TAIL, max(0, size - _STDERR_TAIL)).decode("utf-8", "replace")
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


if __name__ == "__main__":
    sys.exit("this is started by bridge_mcore.rewards.sandbox")
