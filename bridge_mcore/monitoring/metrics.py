"""Metrics on disk: one JSON line a training step, one a evaluation, and the same numbers in TensorBoard.

The JSON lines are the record that everything else (report, figure, tests) reads, so they survive what runs do not:
each line is one ``write`` of its own, a line that a kill tore is dropped on resume, and resuming from step k removes
what was written after k, atomically, so that a resumed run's file looks like the file of one that was never stopped.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import parse_json
from bridge_mcore.errors import ConfigError, DataError, TrainingError
from bridge_mcore.monitoring.recorded import MOST_STEPS

METRICS_FILE = "metrics.jsonl"
EVALUATION_FILE = "evaluation.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"

RUN_DIRECTORY_HOLDS = (
    "A run directory, as `bridge-mcore train` writes it, holds metrics.jsonl (a line a step), evaluation.jsonl, "
    "config.yaml, and at the end summary.json, figure.png, checkpoints/ and export/."
)


class MetricsWriter:
    """Writes a run's metrics; only one process of a run may hold one.

    ``resume_step=None`` starts a new run: files that an earlier attempt left (one that died before its first
    checkpoint) are put aside as ``*.previous``. ``resume_step=k`` goes on after step k.
    """

    def __init__(self, directory: Path, tensorboard: bool, resume_step: int | None) -> None:
        directory = Path(directory)
        self._tensorboard = None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in (METRICS_FILE, EVALUATION_FILE):
                path = directory / name
                if resume_step is None:
                    if path.exists() and path.stat().st_size:
                        os.replace(path, path.with_name(path.name + ".previous"))
                else:
                    _truncate_after(path, resume_step)
            self._metrics = _LineFile(directory / METRICS_FILE)
            self._evaluations = _LineFile(directory / EVALUATION_FILE)
        except OSError as error:
            raise TrainingError(f"{directory}: cannot write metrics there: {error.strerror or error}") from error
        if tensorboard:
            self._tensorboard = _open_tensorboard(directory / TENSORBOARD_DIRECTORY, resume_step)

    def write(self, step: int, metrics: Mapping[str, float | int | str | None]) -> None:
        """Append one training step. NaN and infinity are not JSON: they are written as null."""
        line = {"step": int(step)} | {key: _plain(value) for key, value in metrics.items() if key != "step"}
        self._metrics.append(line)
        self._scalars(step, {_tag(key): value for key, value in line.items() if key != "step"})

    def write_evaluation(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Append one evaluation: ``{"accuracy": float, "sets": {name: accuracy}, "problems": int}``."""
        line = {"step": int(step)} | {key: _plain(value) for key, value in evaluation.items() if key != "step"}
        self._evaluations.append(line)
        scalars = {"evaluation/accuracy": line.get("accuracy")}
        scalars |= {f"evaluation/{name}": value for name, value in (line.get("sets") or {}).items()}
        self._scalars(step, scalars)

    def close(self) -> None:
        """Close the files; TensorBoard writes what it still holds."""
        self._metrics.close()
        self._evaluations.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        if self._tensorboard is None:
            return
        for tag, value in scalars.items():
            if isinstance(value, (int, float)):
                self._tensorboard.add_scalar(tag, value, global_step=step)


class _LineFile:
    """Appends JSON lines, each by one unbuffered write, so that a kill can tear only the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, line: dict[str, Any]) -> None:
        data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
        start = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError("the disk is full or a quota is reached")
        except OSError as error:
            self._file.truncate(start)  # half a line would spoil the file for the run that resumes
            raise TrainingError(f"{self._path}: cannot write metrics: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, in order. A torn last line (a run killed while writing) is left out."""
    return [line for line, _ in _read_lines(Path(run_dir) / METRICS_FILE)]


def missing_steps(run_dir: Path, step: int) -> list[str]:
    """A warning, if a run's metrics lack steps up to `step`, which a resume cannot bring back; else nothing.

    Raises DataError if the file cannot be read.
    """
    path = Path(run_dir) / METRICS_FILE
    there = {line["step"] for line, _ in _read_lines(path)} if path.exists() else set()
    gaps: list[list[int]] = []
    for missing in (number for number in range(1, step + 1) if number not in there):
        if gaps and gaps[-1][1] == missing - 1:
            gaps[-1][1] = missing
        else:
            gaps.append([missing, missing])
    if not gaps:
        return []
    shown = [str(a) if a == b else f"{a} to {b}" for a, b in gaps[:5]]
    more = f" and {len(gaps) - 5} more stretches" if len(gaps) > 5 else ""
    return [f"warning: {path} lacks steps {', '.join(shown)}{more} of {step}"]


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """A run's evaluations, one a step. A resumed run may evaluate its first step again: the last one counts."""
    by_step = {line["step"]: line for line, _ in _read_lines(Path(run_dir) / EVALUATION_FILE)}
    return [by_step[step] for step in sorted(by_step)]


def _read_lines(path: Path) -> list[tuple[dict[str, Any], bytes]]:
    """Parsed lines with their bytes. Only the last line may be broken: everything before it was once whole."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. {RUN_DIRECTORY_HOLDS}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    # A power cut can leave a tail of NUL bytes: blank, like white space.
    numbered = [(i, data) for i, data in enumerate(raw.split(b"\n"), start=1) if data.strip(b" \t\r\x00")]
    lines = []
    for i, data in numbered:
        try:
            line = parse_json(data)
        except ValueError as error:
            if i == numbered[-1][0]:
                break
            raise DataError(f"{path}, line {i}: not valid JSON ({error}); mend or delete this line") from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int) or abs(line["step"]) > MOST_STEPS:
            raise DataError(f'{path}, line {i}: not an object with an integer "step"; mend or delete this line')
        lines.append((line, data))
    return lines


def _truncate_after(path: Path, step: int) -> None:
    """Keep the whole lines up to ``step``. By temp file and rename: a kill leaves the old file or the new one."""
    if not path.exists():
        return
    kept = b"".join(data + b"\n" for line, data in _read_lines(path) if line["step"] <= step)
    if kept == path.read_bytes():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _open_tensorboard(directory: Path, resume_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"monitoring.tensorboard is on, but TensorBoard cannot be imported ({error}): "
            "`pip install tensorboard`, or set monitoring.tensorboard=false"
        ) from error
    # purge_step hides the events of the steps that the resumed run does again (of all of them, for a new run in an
    # old directory).
    purge_step = resume_step + 1 if resume_step is not None else (0 if directory.exists() else None)
    return SummaryWriter(log_dir=str(directory), purge_step=purge_step, flush_secs=10)


def _plain(value: Any) -> Any:
    """``value`` as JSON has it: NumPy and torch scalars as numbers, NaN and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tag(key: str) -> str:
    """TensorBoard's name of a metric: its cards are grouped by what stands before the slash."""
    for group in ("seconds", "grad_norm", "update_norm", "logprob_gap", "verifier", "sync", "rollouts", "server"):
        if key.startswith(group + "_"):
            return f"{group}/{key[len(group) + 1 :]}"
    return f"objective/{key}" if key.startswith("j_") or key in ("gain", "lam", "kl") else f"train/{key}"
