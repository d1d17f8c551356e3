"""The answers of a training run's evaluations, as `bridge-mcore scores` reads those of `bridge-mcore eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bridge_mcore.errors import DataError
from bridge_mcore.evaluation.records import Record, read_records


def files_of_run(directory: Path) -> list[Path]:
    """The records of a run directory's evaluations, the newest first; empty if it is none, or has none."""
    return sorted(directory.glob("evaluations/step_*.jsonl"), reverse=True)


def read_run_answers(directory: Path, tell: Callable[[str], None]) -> tuple[dict[str, list[Record]], dict[str, int]]:
    """(records, samples) by evaluation set of a run directory: of each set the newest evaluation.

    Problems with fewer answers than the others are left out, and said. Raises DataError if nothing was evaluated.
    """
    answered: dict[str, list[Record]] = {}
    samples: dict[str, int] = {}
    for file in files_of_run(directory):
        step = file.stem.removeprefix("step_").lstrip("0") or "0"
        groups: dict[str, dict[str, list[Record]]] = {}
        for record in read_records(file):
            if record.set not in answered:
                groups.setdefault(record.set, {}).setdefault(record.id, []).append(record)
        for name, problems in groups.items():
            samples[name] = max(len(group) for group in problems.values())
            whole = [group for group in problems.values() if len(group) == samples[name]]
            short = f"; {len(problems) - len(whole)} have answers missing" if len(whole) < len(problems) else ""
            tell(f"· {directory.name}, {name}: {len(whole)} problems, after step {step}{short}")
            answered[name] = [record for group in whole for record in sorted(group, key=lambda r: r.sample)]
    if not answered:
        raise DataError(f"{directory} holds no evaluation of this run yet (data.evaluation, evaluation.every)")
    return answered, samples
