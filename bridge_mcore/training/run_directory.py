"""A run's directory: starting anew, going on, and putting an old run aside."""

from __future__ import annotations

from pathlib import Path

from bridge_mcore.checkpoint.run_state import list_checkpoints, read_manifest
from bridge_mcore.config.schema import Config
from bridge_mcore.errors import CheckpointError, ConfigError


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
    """The checkpoint that `run.resume` means, and remarks for the user.

    `auto` takes the newest complete one and says so if a newer one is damaged; with none at all the run starts.
    Raises ConfigError for a named checkpoint that is none.
    """
    resume = config.run.resume
    if resume in ("never", "restart"):
        return None, []
    if resume != "auto":
        path = Path(resume)
        read_manifest(path)
        return path, []
    remarks = []
    for path in list_checkpoints(config.run.directory / "checkpoints"):
        try:
            read_manifest(path)
        except CheckpointError as error:
            remarks.append(f"warning: {error}; going on from an older checkpoint")
            continue
        return path, remarks
    if remarks:
        raise ConfigError(f"no checkpoint in {config.run.directory / 'checkpoints'} is complete: " + "; ".join(remarks))
    return None, []
