"""Directories that appear complete or not at all, whatever kills the writer."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from bridge_mcore.errors import TrainingError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Force a directory's files and entries to disk."""
    for path in [*directory.rglob("*"), directory]:
        _sync(path)


def _first_error(error: BaseException | None) -> str | None:
    """The first failure among all ranks: all of them must agree on whether the directory is whole."""
    mine = None if error is None else f"{type(error).__name__}: {error}"
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine)
    return next((e for e in errors if e is not None), None)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory next to `target`; on success it replaces `target`, on failure it is removed.

    Every rank calls it; rank 0 makes, renames and removes. What stood at `target` stays until the new directory is
    complete on disk. A full disk raises TrainingError and leaves the old one alone.
    """
    target = Path(target).resolve()
    main = not dist.is_initialized() or dist.get_rank() == 0
    temporary = target.with_name(f".{target.name}.incomplete")
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    if dist.is_initialized():
        dist.barrier()
    failure: BaseException | None = None
    try:
        yield temporary
    except BaseException as error:
        failure = error
    shared = None if isinstance(failure, KeyboardInterrupt) else _first_error(failure)
    if failure is None and shared is None:
        if main:
            sync_tree(temporary)
            old = target.with_name(f".{target.name}.replaced")
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)
            temporary.rename(target)
            _sync(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        if dist.is_initialized():
            dist.barrier()
        return
    if main:
        shutil.rmtree(temporary, ignore_errors=True)
    full = isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in f"{failure} {shared}":  # safetensors reports it as text
        raise TrainingError(
            f"the disk is full: {target} was not written, and what was saved before is untouched; free some space"
        ) from failure
    if isinstance(failure, OSError):
        raise TrainingError(f"{target} could not be written: {failure}") from failure
    if failure is not None:
        raise failure
    raise TrainingError(f"{target} was not written, because another rank failed: {shared}")
