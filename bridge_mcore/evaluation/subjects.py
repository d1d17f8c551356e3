"""Models to evaluate: HF checkpoints as they are, runs and their checkpoints as the HF model that they export."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bridge_mcore.config.types import typed_path
from bridge_mcore.errors import ConfigError
from bridge_mcore.evaluation.options import Subject
from bridge_mcore.monitoring.progress import say

if TYPE_CHECKING:
    import torch

#: What a command writes beside its models' directories.
_TAKEN = ("results.json", "results.md")


def read_subjects(given: Sequence[str]) -> tuple[Subject, ...]:
    """Models as the command line names them: DIR, or LABEL=DIR. Labels are made different from one another.

    Raises ConfigError for a directory that is not there, and for labels that are equal or no file names.
    """
    subjects: list[Subject] = []
    for text in given:
        label, equals, rest = text.partition("=")
        if not (equals and "/" not in label and not os.path.exists(text)):  # Path.exists raises for a name too long
            label, rest = "", text
        path = typed_path(rest, "MODEL")
        if not os.path.isdir(path):
            raise ConfigError(f"MODEL {text}: {path} is no directory; give an HF checkpoint, or a run")
        label = label or _label(path)
        unfit = label in _TAKEN or label.startswith(".") or not label.isprintable() or len(label.encode()) > 200
        if not label or unfit or any(c in label for c in '/\\:*?"<>|'):
            raise ConfigError(f"MODEL {text}: '{label}' cannot name a directory; write LABEL=DIR with another label")
        subjects.append(Subject(label, path))
    labels = [s.label for s in subjects]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(
                f"two models are called {label}; write LABEL=DIR, for example {label}-2={subjects[-1].path}"
            )
    return tuple(subjects)


def _label(path: Path) -> str:
    """The last parts of a path that tell models apart: of `runs/a/export`, `a-export`."""
    path = path.absolute()
    if path.name == "export" or path.name.startswith("step_"):
        parent = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        return f"{parent.name}-{path.name}"
    return path.name


@contextmanager
def hf_directory(subject: Subject, adapter: Path | None, dtype: torch.dtype | None, scratch: Path) -> Iterator[Path]:
    """An HF checkpoint of a model: its own directory; or, of a run (its newest) or a run's checkpoint, θ with w merged,
    and with `adapter` the merged model, written to `scratch` and removed when the context ends."""
    from bridge_mcore.checkpoint import convert
    from bridge_mcore.checkpoint.run_adapter import has_adapter, newest_checkpoint

    path = newest_checkpoint(subject.path, say)
    is_hf = (path / "config.json").is_file()
    if is_hf and adapter is None:
        yield path
        return
    options = convert.Options(convert.default_workers(), True, int(5e9), say=say)
    if is_hf:
        model = convert.open_hf(path)
    else:
        model = convert.open_megatron(path)
        if has_adapter(model.source.directory):
            model = convert.with_own_adapter(model)
    if adapter is not None:
        model = convert.with_adapter(model, adapter)
    say(f"· writing {subject.label} as a merged HF checkpoint, for this command")
    convert.to_hf(model, scratch, dtype, options)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
