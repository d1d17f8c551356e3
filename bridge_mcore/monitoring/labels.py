"""What runs are called where several stand side by side: short names that tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bridge_mcore.monitoring.runs import Run


def run_labels(runs: Sequence[Run]) -> list[str]:
    """The directory's own name, or its path where two have the same, and the method."""
    names = [run.name for run in runs]
    labels = [name if names.count(name) == 1 else str(run.directory) for name, run in zip(names, runs, strict=True)]
    return [f"{label} ({run.method})" if run.method else label for label, run in zip(labels, runs, strict=True)]


def model_labels(runs: Sequence[Run]) -> list[str]:
    """Each run's model; different ones of the same name with as much of their paths as tells them apart."""
    labels = [run.model for run in runs]
    paths = [run.setting("model.path") for run in runs]
    for i, label in enumerate(labels):
        others = {path for path, other in zip(paths, labels, strict=True) if path and other == label} - {paths[i]}
        if paths[i] and others:
            labels[i] = _apart(Path(paths[i]).parts, [Path(other).parts for other in others], label.count("/") + 1)
    return labels


def _apart(path: tuple[str, ...], others: Sequence[tuple[str, ...]], least: int) -> str:
    """The last parts of a path, at least so many, that none of the others ends in."""
    for count in range(least, len(path) + 1):
        if all(other[-count:] != path[-count:] for other in others):
            return "/".join(path[-count:])
    return str(Path(*path))
