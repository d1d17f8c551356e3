"""``bridge-mcore verify FILE.jsonl``: the training's own verifier on a file of answers."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from bridge_mcore.errors import DataError
from bridge_mcore.rewards import MathVerifier, Verdict

#: Lines that are verified together: enough to keep the workers busy, few enough to stream.
BATCH_LINES = 512
#: Longest line in bytes. Only a file that is no JSONL has a longer one, and it must not fill the memory.
MAX_LINE = 64 << 20
_MEND = 'each line must be {"gold": "...", "response": "..."}'


def verify(
    file: Annotated[
        Path,
        typer.Argument(
            help='JSONL file with a line {"gold": "...", "response": "..."} per answer; "-" reads standard input. '
            "Other keys are ignored, and so are blank lines."
        ),
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that run the comparisons.")] = 2,
    cpu_seconds: Annotated[
        float,
        typer.Option(min=0.1, help='CPU seconds that one comparison may take; beyond, its verdict is "timeout".'),
    ] = 5.0,
    wall_seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds by the clock after which a comparison is given up, busy or not."),
    ] = 60.0,
) -> None:
    r"""Check answers: is the last \boxed{...} of each response the gold answer?

    Prints one JSON line for each input line, in order, on standard output: {"verdict": "correct" | "incorrect" |
    "timeout" | "error", "reason": "..."}. A line that cannot be read gets the verdict "error" with its line number.
    Progress and the totals go to standard error.
    """
    with _open(file) as stream, MathVerifier(workers, cpu_seconds, wall_seconds) as verifier:
        name = "standard input" if str(file) == "-" else str(file)
        try:
            _verify_stream(stream, name, verifier)
        except BrokenPipeError:
            # The reader (`| head`) has seen enough. Python would complain when it flushes stdout at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open(file: Path) -> BinaryIO:
    if str(file) == "-":
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    try:
        return file.open("rb")
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror}. Give a JSONL file ({_MEND}), or - for standard input"
        ) from error


def _verify_stream(stream: BinaryIO, name: str, verifier: MathVerifier) -> None:
    progress = _Progress()
    for batch in _batches(stream, name):
        verdicts = iter(verifier.verify([pair for pair in batch if isinstance(pair, tuple)]))
        for item in batch:
            verdict = next(verdicts) if isinstance(item, tuple) else item
            print(json.dumps({"verdict": verdict.verdict, "reason": verdict.reason}))
            progress.counts[verdict.verdict] += 1
        sys.stdout.flush()
        progress.show()
    progress.finish()


def _batches(stream: BinaryIO, name: str) -> Iterator[list[tuple[str, str] | Verdict]]:
    """Pairs, or the verdict on a line that is none, as they come in: a writer at the other end of a pipe that waits for
    an answer before it goes on gets one."""
    batch: list[tuple[str, str] | Verdict] = []
    for number, line in enumerate(_lines(stream), start=1):
        if line is not None and line.strip():
            batch.append(_parse(line, f"{name}, line {number}"))
        if batch and (line is None or len(batch) >= BATCH_LINES):
            yield batch
            batch = []
    if batch:
        yield batch
