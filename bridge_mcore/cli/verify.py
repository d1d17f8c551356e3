"""``bridge-mcore verify FILE.jsonl``: the training's own verifier on a file of answers."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Annotated, cast

import typer

from bridge_mcore.cli.options import MOST_PROCESSES, MOST_SECONDS, user_path
from bridge_mcore.config.machine import require_processes
from bridge_mcore.errors import DataError
from bridge_mcore.rewards import MathVerifier, Verdict
from bridge_mcore.rewards.math import gold_text
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.readable import is_only_text
from bridge_mcore.rewards.verdict import VERDICTS

#: Lines that are verified together: enough to keep the workers busy, few enough to stream.
BATCH_LINES = 512
#: Longest line in bytes. Only a file that is no JSONL has a longer one, and it must not fill the memory.
MAX_LINE = 64 << 20
_Item = Attempt | Verdict
_MEND = 'each line must be {"gold": "...", "response": "..."}'


def verify(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help='JSONL file with a line {"gold": "...", "response": "..."} per answer; "-" reads stdin. '
            'With the question as "prompt" a line is judged as in training: its answer must be worked out and must '
            "not repeat the question. Other keys are ignored, and so are blank lines.",
            callback=user_path,
        ),
    ],
    workers: Annotated[
        int, typer.Option(min=1, max=MOST_PROCESSES, metavar="N", help="Processes that run the comparisons.")
    ] = 2,
    cpu_seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=MOST_SECONDS,
            metavar="SECONDS",
            help='CPU seconds that one comparison may take; beyond, its verdict is "timeout".',
        ),
    ] = 5.0,
    wall_seconds: Annotated[
        float,
        typer.Option(
            min=0.1,
            max=MOST_SECONDS,
            metavar="SECONDS",
            help="Seconds by the clock after which a comparison is given up, busy or not.",
        ),
    ] = 60.0,
) -> None:
    r"""Check answers: is the last \boxed{...} of each response the gold answer?

    Prints one JSON line for each input line, in order, on standard output: {"verdict": "correct" | "incorrect" |
    "timeout" | "error", "reason": "..."}. A line that cannot be read gets the verdict "error" with its line number.
    Ends with exit code 2 if no line at all could be judged.
    Progress and the totals go to standard error.
    """
    require_processes("--workers", workers)
    name = "standard input" if str(file) == "-" else str(file)
    with _open(file) as stream, MathVerifier(workers, cpu_seconds, wall_seconds) as verifier:
        progress = _Progress()
        try:
            for batch in _batches(stream, name):
                _verify_batch(batch, verifier, progress)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Python would complain when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        progress.finish()
    if progress.counts and not progress.counts["correct"] + progress.counts["incorrect"]:
        raise DataError(f"none of the {progress.counts.total()} lines could be judged; the first: {progress.first}")


def _open(file: Path) -> contextlib.AbstractContextManager[BufferedIOBase]:
    if str(file) == "-":
        return contextlib.nullcontext(cast(BufferedIOBase, sys.stdin.buffer))
    try:
        stream = file.open("rb")
        if stat.S_ISCHR(os.fstat(stream.fileno()).st_mode) and not stream.isatty():
            stream.close()
            raise DataError(f"{file} is a device, which may have no end; give a JSONL file ({_MEND})")
        return stream
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}. Give a JSONL file ({_MEND}), or - for standard input"
        ) from error


def _verify_batch(batch: list[_Item], verifier: MathVerifier, progress: _Progress) -> None:
    verdicts = iter(verifier.judge([item for item in batch if isinstance(item, Attempt)]))
    for item in batch:
        verdict = next(verdicts) if isinstance(item, Attempt) else item
        if isinstance(item, Attempt):
            progress.golds.add(item.gold)
        print(json.dumps({"verdict": verdict.verdict, "reason": verdict.reason}))
        progress.counts[verdict.verdict] += 1
        progress.first = progress.first or f"{verdict.verdict}: {verdict.reason}"
    sys.stdout.flush()
    progress.show()


def _batches(stream: BufferedIOBase, name: str) -> Iterator[list[_Item]]:
    """(gold, response) pairs in batches, with the verdict itself for a line that holds none.

    A batch ends where what has come in so far ends, so that a program at the other end of a pipe that waits for a
    verdict before it writes on is not kept waiting.
    """
    number = 0
    for lines in _line_groups(stream):
        batch: list[_Item] = []
        for line in lines:
            number += 1
            if line is None or line.strip():
                batch.append(_parse(line, number, name))
            if len(batch) == BATCH_LINES:
                yield batch
                batch = []
        if batch:
            yield batch


def _line_groups(stream: BufferedIOBase) -> Iterator[list[bytes | None]]:
    """The lines that each read completes; None for one longer than MAX_LINE, which is not held whole."""
    rest, skipping = bytearray(), False
    while chunk := stream.read1(1 << 20):
        *whole, last = chunk.split(b"\n")
        lines: list[bytes | None] = []
        for piece in whole:
            rest += piece
            lines.append(None if skipping or len(rest) > MAX_LINE else bytes(rest))
            rest, skipping = bytearray(), False
        rest += last
        if len(rest) > MAX_LINE:
            rest, skipping = bytearray(), True
        if lines:
            yield lines
    if rest or skipping:
        yield [None if skipping else bytes(rest)]


def _parse(line: bytes | None, number: int, name: str) -> _Item:
    def malformed(what: str) -> Verdict:
        return Verdict("error", f"{name}, line {number}: {what}; {_MEND}")

    if line is None:
        return malformed(f"longer than {MAX_LINE >> 20} MiB")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return malformed(f"not UTF-8 (byte {error.start})")
    except json.JSONDecodeError as error:
        return malformed(f"not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError):  # an integer of thousands of digits; brackets in brackets without end
        return malformed("JSON that is too deep or has too long a number")
    if not isinstance(row, dict):
        return malformed("not a JSON object")
    for key in ("gold", "response"):
        if key not in row:
            return malformed(f'"{key}" is missing')
        if not isinstance(row[key], str):
            return malformed(f'"{key}" is not a string')
    prompt = row.get("prompt")
    return Attempt(row["gold"], row["response"], prompt if isinstance(prompt, str) else "")


class _Progress:
    """Totals on stderr: every second on a terminal, and at the end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first = ""
        self.golds: set[str] = set()
        self._start = self._shown = time.monotonic()
        self._live = sys.stderr.isatty()

    def show(self) -> None:
        if self._live and time.monotonic() - self._shown > 1:
            self._shown = time.monotonic()
            print(f"\r{self._line()}", end="", file=sys.stderr, flush=True)

    def finish(self) -> None:
        print(("\r" if self._live else "") + self._line(), file=sys.stderr)
        texts = sorted(gold for gold in self.golds if (read := gold_text(gold)) and is_only_text(read))
        if texts:
            print(
                f"{len(texts)} of {len(self.golds)} different golds can only be compared as text: no other spelling of "
                f"them is ever right; the first: {texts[0][:60]!r}",
                file=sys.stderr,
            )

    def _line(self) -> str:
        total, seconds = self.counts.total(), time.monotonic() - self._start
        counts = ", ".join(f"{name} {self.counts[name]}" for name in VERDICTS)
        return f"{total} lines in {seconds:.1f} s ({total / max(seconds, 1e-9):.0f}/s): {counts}"
