"""What a run's files may say: whoever reads them relies on it. Anything else was not written by a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import shown
from bridge_mcore.errors import DataError

#: Steps, and problems of an evaluation; the largest number of any metric.
MOST_STEPS, _LARGEST = 10**12, 1e100
#: Keys of config.yaml that are read back, and their kinds; all may be missing or null.
_SETTINGS: dict[str, tuple[type, ...]] = {
    "method.name": (str,),
    "model.path": (str,),
    "model.generated": (dict,),
    "training.steps": (int,),
    "adapter.rank": (int,),
    "method.sft_steps": (int,),
    "run.seed": (int,),
}


def setting(config: Mapping[str, Any], key: str) -> Any:
    """``setting(config, "training.steps")``: a value of config.yaml, or None."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def check_settings(path: Path, config: Mapping[str, Any]) -> None:
    """Raises DataError for a value of another kind."""
    for key, kinds in _SETTINGS.items():
        value = setting(config, key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise DataError(f"{path}: {key} = {shown(value)} is not what a run writes; mend or delete this line")


def check_metrics(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError for numbers that no run writes."""
    for line in lines:
        for key, problem in _wrong_numbers(line):
            raise DataError(f"{path}, step {line['step']}: {key} {problem}; mend or delete this line")


def check_evaluations(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Raises DataError for accuracies and numbers of problems that cannot be."""
    check_metrics(path, lines)
    for line in lines:
        sets, problems = line.get("sets") or {}, line.get("problems")
        if not isinstance(sets, Mapping) or any(not _is_share(value) for value in sets.values()):
            what = f"sets = {shown(sets)} is no object of accuracies from 0 to 1"
        elif problems is not None and not (_is_number(problems) and 0 <= problems <= MOST_STEPS):
            what = f"problems = {shown(problems)} is no number of problems"
        else:
            continue
        raise DataError(f"{path}, step {line['step']}: {what}; mend or delete this line")


def _wrong_numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in line.items():
        if _is_number(value) and abs(value) > _LARGEST:
            yield key, f"= {shown(value)} is too large a number"
    if not _is_share(line.get("accuracy")):
        yield "accuracy", f"= {shown(line['accuracy'])} is not between 0 and 1"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    """An accuracy, or nothing that is one: null, and NaN, which was written as null."""
    return value is None or (_is_number(value) and not (value < 0 or value > 1))  # type: ignore[operator]
