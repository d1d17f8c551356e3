"""A server that the run starts, watches and ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from bridge_mcore.config.secrets import given_values, hide_arguments
from bridge_mcore.errors import TrainingError
from bridge_mcore.platform.ranks import RENDEZVOUS
from bridge_mcore.rollout.remote import guard
from bridge_mcore.rollout.remote.dialect import Dialect, LaunchOptions

#: (pattern in the log, what it means and how to mend it)
_KNOWN = (
    (r"address already in use|error while attempting to bind", "its port is taken: set servers.port to another"),
    (
        r"out of memory|not enough memory|Cannot allocate memory|bad_alloc|No available memory",
        "memory is short: lower servers.memory_fraction or servers.in_flight, or give it more GPUs (servers.tensor)",
    ),
    (
        r"No module named '?(sglang|vllm)\b",
        "its interpreter has no such engine: run `make engines`, or set servers.python",
    ),
    (
        r"does not appear to have a file named config\.json|Repo id must be|is not a local folder|Unrecognized model",
        "it cannot read the model directory",
    ),
    (r"unrecognized arguments", "servers.arguments has one that this version does not know"),
)  # fmt: skip

_WORLD = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", RENDEZVOUS,
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """What a server demands with every request, but for reading `open_paths`. Not shown."""

    text: str = field(repr=False)
    open_paths: tuple[str, ...] = ()


class ServerProcess:
    """One managed server: the process group it runs in, and its log."""

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        options: LaunchOptions,
        log: Path,
        devices: list[int] | None,
        extra: list[str],
        key: Key | None = None,
    ) -> None:
        """devices: GPUs it may see; None: all. extra: environment variables, NAME=VALUE (NAME alone: the trainer's).
        key: what it is to demand with every request."""
        self.name, self.dialect, self.options, self.log = name, dialect, options, log
        self.devices, self.extra, self.key = devices, extra, key
        self.process: subprocess.Popen | None = None
        self.started = 0.0
        self._segments: set[str] = set()  # what the present attempt has in /dev/shm, as far as known
        self._is_swept = False
        self._began = 0.0  # the present attempt, time.time()
        self._end_of_log = 0  # where the present attempt's log begins

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.options.host}:{self.options.port}"

    def start(self) -> None:
        """Start it; returns at once. Raises TrainingError if that cannot work: the port is taken, no interpreter."""
        with socket.socket() as probe:
            # As servers do: a port whose last connections are fading out is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.options.host, self.options.port))
            except OSError as error:
                raise TrainingError(
                    f"{self.name} cannot listen on {self.url}: {error.strerror}; set servers.port to another port"
                ) from error
        command, environment = self.dialect.command(self.options)
        everything = {**os.environ, **environment, **given_values(self.extra)}
        for variable in list(everything):  # the trainer's world is none of the server's
            if variable in _WORLD or variable.startswith("TORCHELASTIC_"):
                del everything[variable]
        if self.devices is not None:
            for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
                shown = [name for name in os.environ.get(variable, "").split(",") if name]
                chosen = [shown[d] if d < len(shown) else str(d) for d in self.devices]
                everything[variable] = ",".join(chosen)
        if shutil.which(command[0], path=everything.get("PATH")) is None:
            raise TrainingError(
                f"{self.name} cannot be started: {command[0]} is no executable file; set servers.python"
            )
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            log.write(f"\n== {time.strftime('%F %T')} {shlex.join(hide_arguments(command))}\n".encode())
            log.flush()
            self._end_of_log = log.tell()
            self._segments, self._is_swept, self._began = set(), False, time.time()
            try:
                self.process = start_guarded(command, everything, log, self.key)
            except OSError as error:
                raise TrainingError(f"{self.name} cannot be started: {error}") from error
        self.started = time.monotonic()

    def note_segments(self) -> None:
        """Remember what its processes have in /dev/shm: should the guard be killed, nobody else knows it."""
        if self.process is not None:
            self._segments |= guard.segments(guard.members(self.process.pid))

    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        if self.process is None:
            return -1
        code = self.process.poll()
        if code is not None and code < 0 and not self._is_swept:  # the guard was killed and could do nothing
            self._is_swept = True
            guard.end_session(self.process.pid, self._segments, self._began)
        return code

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended, or does so in this time: a connection breaks before the exit code is there."""
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=seconds)
        return self.exit_code() is not None

    def describe_exit(self) -> str:
        """One line: how it ended."""
        code = self.exit_code()
        if self.process is None:
            return f"{self.name} was not started"
        if code is None:
            return f"{self.name} is running"
        code = 128 - code if code < 0 else code  # of the guard itself
        known = {128 + s.value: s.name for s in signal.Signals}
        return f"{self.name} " + (f"was killed by {known[code]}" if code in known else f"ended with exit code {code}")

    def last_lines(self, count: int = 12) -> str:
        """The end of its log, as people want it in an error."""
        with suppress(OSError), open(self.log, "rb") as log:
            log.seek(self._end_of_log)
            lines = deque((_readable(line) for line in log if line.strip()), maxlen=count)
            return "\n".join(f"    {line}" for line in lines or ["(nothing)"])
        return "    (there is no log)"

    def diagnosis(self) -> str:
        """What its log says is wrong, in words; "" if nothing known."""
        with suppress(OSError), open(self.log, "rb") as log:
            log.seek(self._end_of_log)
            text = _tail(log).decode(errors="replace")
            for pattern, meaning in _KNOWN:
                if re.search(pattern, text, re.IGNORECASE):
                    return meaning
        return ""

    def ask_to_end(self) -> None:
        """Have it end, and all that it started; it is killed after some seconds."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def close(self) -> None:
        """As `ask_to_end`, and wait until it has ended."""
        if self.exit_code() is not None:
            return
        assert self.process is not None
        self.ask_to_end()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()  # the kernel kills the server when its guard is gone
            self.process.wait()
            self.exit_code()


def start_guarded(
    command: list[str], environment: dict[str, str], log: IO[bytes], key: Key | None = None
) -> subprocess.Popen:
    """Start a server under `guard`, which ends it with all it started when the trainer dies. It finds `key` on its
    standard input: a command line, an environment and a file can be read by others, and are inherited."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it may have ended already
        pipe.write(f"{key.text}\n{' '.join(key.open_paths)}\n".encode() if key is not None else b"\n\n")
    return process


def _readable(line: bytes, width: int = 220) -> str:
    text = line.decode(errors="replace").rstrip()
    return text if len(text) <= width else f"{text[:width]}…"


def _tail(log: IO[bytes], size: int = 200_000) -> bytes:
    """The last bytes of an open file from its present place on."""
    here = log.tell()
    end = log.seek(0, os.SEEK_END)
    log.seek(max(here, end - size))
    return log.read()
