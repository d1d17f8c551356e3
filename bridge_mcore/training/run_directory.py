"""A run's directory: starting anew, going on, and putting an old run aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge_mcore.checkpoint import atomic
from bridge_mcore.checkpoint.manifest import list_checkpoints, read_manifest
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import BridgeError, CheckpointError, ConfigError


def has_run(directory: Path) -> bool:
    """True if a run has written here."""
    return any((directory / name).exists() for name in ("metrics.jsonl", "checkpoints", "config.yaml"))


def set_aside(directory: Path) -> Path | None:
    """Rename an old run's directory to the first free `NAME.old-N`; nothing is deleted. None if there was none."""
    if not directory.exists() or not has_run(directory):
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}.old-{number}")).exists():
        number += 1
    directory.rename(target)
    return target


def checkpoint_to_resume(config: Config) -> tuple[Path | None, list[str]]:
    """The checkpoint that `run.resume` means, and remarks for the user. Collective: rank 0 looks, for all of them.

    `auto` takes the newest complete one and says so if a newer one is damaged; with none at all the run starts. What a
    killed run left unfinished is put right first.
    Raises CheckpointError or ConfigError, on every rank, for a named checkpoint that is none, or if none is complete.
    """
    found: list[Any] = [None, None]
    if atomic.is_main():
        try:
            found = [_choose(config), None]
        except BridgeError as error:
            found = [None, error]
    if dist.is_initialized():
        # Shared file systems may show ranks different states of a directory; a run must not go on from two steps.
        dist.broadcast_object_list(found)
    choice, problem = found
    if problem is not None:
        raise problem
    return choice


def _choose(config: Config) -> tuple[Path | None, list[str]]:
    resume = config.run.resume
    if resume in ("never", "restart"):
        return None, []
    directory = config.run.directory / "checkpoints"
    atomic.recover(directory, "step_*")
    if resume != "auto":
        path = Path(resume)
        read_manifest(path)
        return path, []
    remarks = []
    for path in list_checkpoints(directory):
        try:
            read_manifest(path)
        except CheckpointError as error:
            remarks.append(f"warning: {error}; going on from an older checkpoint")
            continue
        return path, remarks
    if remarks:
        raise ConfigError(f"no checkpoint in {directory} is complete: " + "; ".join(remarks))
    return None, []
