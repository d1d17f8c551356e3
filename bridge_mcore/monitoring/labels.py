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
    models = [(run.model, run.setting("model.path")) for run in runs]
    labels = []
    for name, path in models:
        others = {other for same, other in models if same == name and other} - {path}
        if path and others:
            name = _apart(Path(path).parts, [Path(other).parts for other in others], name.count("/") + 1)
        labels.append(name)
    return labels


def _apart(path: tuple[str, ...], others: Sequence[tuple[str, ...]], least: int) -> str:
    """The last parts of a path, at least so many, that none of the others ends in."""
    for count in range(least, len(path) + 1):
        if all(other[-count:] != path[-count:] for other in others):
            return "/".join(path[-count:])
    return str(Path(*path))
