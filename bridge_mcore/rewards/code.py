"""Judge programs by running them on tests in a sandbox (see :mod:`bridge_mcore.rewards.sandbox`).

The gold answer is JSON, one of

    {"style": "stdin", "tests": [{"input": "1 2\\n", "output": "3\\n"}, …]}
    {"style": "function", "entry_point": "add", "tests": [{"args": [1, 2], "output": 3}, …]}
    {"style": "function", "entry_point": "add", "test": "def check(candidate): …"}

each with an optional "time_limit" in CPU seconds for one test. Functions may have a "prelude": source that the question
gave (imports, helpers), which runs before the program and before the test. In the third form "names" may list further
functions of the program that the test uses. :mod:`bridge_mcore.data.code_formats` makes golds from published files.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bridge_mcore.errors import BridgeError
from bridge_mcore.rewards.pool import Outcome, Pool
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.sandbox import SandboxSettings, require_sandbox
from bridge_mcore.rewards.verdict import Verdict

#: Longest program in characters that is run.
MAX_PROGRAM = 1 << 18
#: Golds longer than this many characters go to the workers as files: a group of rollouts shares one.
_GOLD_BY_FILE = 1 << 17
#: Bytes of such files that are kept for later calls.
_KEPT_BYTES = 1 << 30

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = ("python", "python3", "py")


def last_program(text: str) -> str | None:
    """The program in a response: the last whole fenced block marked as Python, else the last one of any kind.

    None if there is none. A block that is not closed was cut off and is no answer.
    """
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        mark, language = fence[1], fence[2].lower()
        if opened is None:
            opened = fence
        elif mark[0] == opened[1][0] and len(mark) >= len(opened[1]) and not language:
            blocks.append((opened[2].lower(), text[opened.end() + 1 : fence.start()]))
            opened = None
        elif language:  # the block before was never closed
            opened = fence
    python = [body for language, body in blocks if language in _PYTHON]
    return python[-1] if python else blocks[-1][1] if blocks else None


class CodeReward:
    """Runs the program of every response on its problem's tests; all must pass.

    :param settings: limits of one program, and what may be lacking.
    :param workers: programs that run at once.
    :param wall_seconds: seconds for all tests of one program; what has not failed by then is "timeout", undecided.
    :raises ConfigError: this machine cannot keep programs from network, files and processes (unless ``unsafe``).
    :raises BoxError: it cannot run them at all.
    """

    def __init__(
        self, settings: SandboxSettings = SandboxSettings(), workers: int = 2, wall_seconds: float = 120.0
    ) -> None:
        self.layers = require_sandbox(settings)
        self._settings, self._seconds = settings, wall_seconds
        self._pool = Pool(
            "bridge_mcore.rewards.code_judge:run",
            workers,
            cpu_seconds=wall_seconds,  # of the comparisons alone: the programs are other processes
            wall_seconds=wall_seconds + 90,  # a box may have to be started twice
            # The box inherits it; NumPy's libraries reserve a lot.
            memory_gib=settings.memory_mib / 1024 + (8 if settings.packages else 4),
        )
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._calls = 0  # under way
        self._lock = threading.Lock()
        #: Verdicts ever given, by name.
        self.counts: Counter[str] = Counter()

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """See :class:`bridge_mcore.rewards.protocol.Reward`."""
        with self._lock:
            self._calls += 1
        try:
            verdicts = self._judge(attempts)
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._forget_golds()
        with self._lock:
            self.counts.update(verdict.verdict for verdict in verdicts)
        return verdicts

    def _judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        verdicts: dict[int, Verdict] = {}
        jobs: dict[int, dict[str, Any]] = {}
        for index, attempt in enumerate(attempts):
            program = last_program(attempt.response)
            if program is None:
                verdicts[index] = Verdict("incorrect", "no code block")
            elif len(program) > MAX_PROGRAM:
                verdicts[index] = Verdict("incorrect", f"a program of {len(program)} characters")
            else:
                jobs[index] = {
                    "program": program,
                    "settings": asdict(self._settings),
                    "namespaces": self.layers.namespaces,
                    "seconds": self._seconds,
                    **self._gold(attempt.gold),
                }
        for index, outcome in zip(jobs, self._pool.map(list(jobs.values())), strict=True):
            verdicts[index] = _verdict(outcome)
        return [verdicts[index] for index in range(len(attempts))]

    def close(self) -> None:
        """End the workers and everything in their boxes."""
        self._pool.close()
        with self._lock:
            if self._folder is not None:
                self._folder.cleanup()
                self._folder = None

    def _gold(self, gold: str) -> dict[str, str]:
        """A gold as the workers get it: large ones as a file that only this user can read."""
        if len(gold) <= _GOLD_BY_FILE:
            return {"gold": gold}
        data = gold.encode("utf-8", "surrogatepass")
        with self._lock:
            try:
                if self._folder is None or not Path(self._folder.name).is_dir():  # a tidy system may have removed it
                    self._folder = tempfile.TemporaryDirectory(prefix="bridge-tests-", ignore_cleanup_errors=True)
                path = Path(self._folder.name, hashlib.sha256(data).hexdigest())
                if not path.exists():
                    partial = path.with_suffix(".partial")
                    partial.write_bytes(data)
                    partial.replace(path)
            except OSError as error:
                raise BridgeError(f"cannot write tests to {tempfile.gettempdir()}: {error}; free space there") from None
        return {"gold_file": str(path)}

    def _forget_golds(self) -> None:
        """Remove the oldest files beyond the space that they may take."""
        if self._folder is None:
            return
        with contextlib.suppress(OSError):
            files = sorted(Path(self._folder.name).iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            total = 0
            for path in files:
                total += path.stat().st_size
                if total > _KEPT_BYTES:
                    path.unlink(missing_ok=True)


def _verdict(outcome: Outcome) -> Verdict:
    if outcome.kind == "done":
        said = outcome.value
        return Verdict(said["verdict"], said["reason"], own_doing=said.get("own_doing", False))
    if outcome.kind == "timeout":
        return Verdict("timeout", f"the tests were stopped: {outcome.reason}")
    return Verdict("error", f"the tests could not be run: {outcome.reason}")
