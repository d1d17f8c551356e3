"""A run's directory: starting anew, going on, and putting an old run aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge_mcore.checkpoint import atomic
from bridge_mcore.checkpoint.manifest import list_checkpoints, read_manifest, verify_files
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

    `auto` takes the newest one that is whole, its checksums included, and says so if a newer one is damaged; with none
    at all the run starts. What a killed run left unfinished is put right first.
    Raises CheckpointError or ConfigError, on every rank, for a named checkpoint that is none, or if none is whole.
    """
    resume = config.run.resume
    if resume in ("never", "restart"):
        return None, []
    found: list[Any] = [None]
    if atomic.is_main():
        try:
            found = [_candidates(config)]
        except BridgeError as error:
            found = [error]
    if dist.is_initialized():
        # Shared file systems may show ranks different states of a directory; a run must not go on from two steps.
        dist.broadcast_object_list(found)
    if isinstance(found[0], BridgeError):
        raise found[0]
    remarks: list[str] = []
    for path in found[0]:
        if resume != "auto":
            return path, []
        problem = _damage(path)
        if problem is None:
            return path, remarks
        remarks.append(f"warning: {problem}; going on from an older checkpoint")
    if remarks:
        raise ConfigError(f"no checkpoint in {config.run.directory / 'checkpoints'} is whole: " + "; ".join(remarks))
    return None, []


def _candidates(config: Config) -> list[Path]:
    """Checkpoints that `run.resume` may mean, the best one first."""
    directory, resume = config.run.directory / "checkpoints", config.run.resume
    atomic.recover(directory, "step_*")
    if resume == "auto":
        return list_checkpoints(directory)
    read_manifest(Path(resume))
    return [Path(resume)]


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if every file is there with its checksum. The ranks share the work."""
    failure = None
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:
        verify_files(path, read_manifest(path), rank, world)
    except CheckpointError as error:
        failure = error
    found = atomic.first_error(failure)
    return None if found is None else found.removeprefix("CheckpointError: ")
