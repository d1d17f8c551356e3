"""A command line in a forked process, watched: how it ends, and within what bounds.

Forking from a process that has everything imported makes one command cost milliseconds. That process is a Python of its
own, not pytest's: it has one thread and nothing open. In it a command may be cut off where it would begin to work.

    outcome = run_forked(["train", "bad.yaml"], seconds=20, cwd=tmp_path)
    assert outcome.kind == "refused", outcome
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
#: What a command is let do to the machine: output in bytes, address space in bytes.
MOST_OUTPUT = 8 << 20
MEMORY = {"AS": 12 << 30}
#: Printed where a command was cut off: it has passed every check that comes before its work.
REACHED = "fuzz: reached"
#: What the commands are cut off at, one by one, unless `stop_at` says otherwise.
WORK = (
    "bridge_mcore.launch.local:run_training",
    "bridge_mcore.launch.local:run_replay",
    "bridge_mcore.launch.local:run_selftest",
    "bridge_mcore.evaluation.command:run_evaluation",
    "bridge_mcore.rollout.command:run_generate",
)
_TRACEBACK = ("Traceback (most recent call last)", "this is a bug in bridge-mcore")
_SHOWN = 3000

Kind = Literal["ok", "refused", "failed", "traceback", "hang", "signal"]


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        kind: ok (exit code 0); refused (2, one message); failed (another code); traceback; hang (killed after its
            time, or for endless output); signal (ended by one).
        code: exit code; the signal's negative number; None of a hang.
        text: stdout and stderr together, the beginning and the end of what is long.
        seconds: by the clock.
        mib: its largest resident memory, that of the process it was forked from included.
    """

    kind: Kind
    code: int | None
    text: str
    seconds: float
    mib: int

    @property
    def reached(self) -> bool:
        """Whether it was cut off where it would have begun to work."""
        return REACHED in self.text


def run_forked(
    arguments: Sequence[str],
    seconds: float,
    cwd: Path,
    limits: Mapping[str, int] = MEMORY,
    stop_at: Sequence[str] = WORK,
    imports: Sequence[str] = ("bridge_mcore.config.checks",),
) -> Outcome:
    """`bridge-mcore ARGUMENTS` in a fork of a process that has `imports` loaded, killed after `seconds`.

    Args:
        limits: soft and hard resource limits by name: {"NOFILE": 40}. FSIZE also cuts off what is printed.
        stop_at: MODULE:FUNCTION of what prints REACHED and returns instead of working; () lets all of it run.
        imports: modules that are loaded before the first fork; those of `stop_at` should be cheap or among them.
    """
    request = {
        "arguments": list(arguments),
        "seconds": seconds,
        "cwd": str(cwd),
        "limits": dict(limits),
        "stop_at": list(stop_at),
    }
    return Outcome(**_forker(tuple(imports)).ask(request))


class _Forker:
    """The process that forks, and the two pipes to it."""

    def __init__(self, imports: Sequence[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.fuzz", *imports],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        atexit.register(self.close)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the process that forks has ended: {self._process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # it ends where its requests end
        self._process.wait()


@functools.cache
def _forker(imports: tuple[str, ...]) -> _Forker:
    return _Forker(imports)


# --- in the process that forks ---------------------------------------------------------------------------------------


def _serve(imports: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in ("bridge_mcore.cli.main", *imports):
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    for line in sys.stdin.buffer:
        answers.write(json.dumps(asdict(_watched(json.loads(line)))) + "\n")
        answers.flush()


def _watched(request: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(request, output.fileno())
        status = _wait(pid, begun + request["seconds"], output.fileno())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it has started, or all of it
        _, ended, usage = os.wait4(pid, 0)
        seconds = time.monotonic() - begun
        text = _text(output.fileno())
    code = os.waitstatus_to_exitcode(ended) if status == "ended" else None
    return Outcome(_kind(code, text), code, text, round(seconds, 3), usage.ru_maxrss >> 10)


def _wait(pid: int, deadline: float, output: int) -> Literal["ended", "killed"]:
    """Until it ends, its time is over or its output too long; it is not yet reaped."""
    watched = os.pidfd_open(pid)
    try:
        while (left := deadline - time.monotonic()) > 0 and os.fstat(output).st_size < MOST_OUTPUT:
            if select.select([watched], [], [], min(left, 0.25))[0]:
                return "ended"
        return "killed"
    finally:
        os.close(watched)


def _kind(code: int | None, text: str) -> Kind:
    if code is None:
        return "hang"
    if code < 0:
        return "signal"
    if any(sign in text for sign in _TRACEBACK):
        return "traceback"
    return {0: "ok", 2: "refused"}.get(code, "failed")  # type: ignore[return-value]


def _text(output: int) -> str:
    size = os.fstat(output).st_size
    if size <= 2 * _SHOWN:
        return os.pread(output, size, 0).decode(errors="replace")
    ends = os.pread(output, _SHOWN, 0), os.pread(output, _SHOWN, size - _SHOWN)
    return f"{ends[0].decode(errors='replace')}\n… {size} bytes …\n{ends[1].decode(errors='replace')}"


def _child(request: dict[str, Any], output: int) -> None:
    code = 99
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        os.chdir(request["cwd"])
        for place in request["stop_at"]:
            _cut_off(place)
        for name, value in {"CORE": 0, **request["limits"]}.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        code = _main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
        for thread in threading.enumerate():  # as Python itself would at its end
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _main(arguments: list[str]) -> int:
    from bridge_mcore.cli.main import main

    sys.argv = ["bridge-mcore", *arguments]
    try:
        main(arguments)
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    return 0


def _cut_off(place: str) -> None:
    """Replaces MODULE:FUNCTION by one that says that it was reached; a module that is not loaded stays unloaded."""
    name, _, function = place.partition(":")
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = type(sys)(name)

    def stop(*_: object, **__: object) -> None:
        print(REACHED)

    setattr(module, function, stop)


if __name__ == "__main__":
    _serve(sys.argv[1:])
