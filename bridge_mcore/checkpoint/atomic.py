"""Directories that appear complete or not at all, whatever kills the writer."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from bridge_mcore.errors import BridgeError, TrainingError
from bridge_mcore.platform.locks import FileLock


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


def is_main() -> bool:
    """Whether this rank makes, renames and removes directories."""
    return not dist.is_initialized() or dist.get_rank() == 0


def first_error(error: BaseException | None) -> str | None:
    """The first failure among all ranks: all of them must agree on whether something worked. Collective."""
    mine = None if error is None else f"{type(error).__name__}: {error}"
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return mine
    errors: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, mine)
    return next((e for e in errors if e is not None), None)


def unfinished(target: Path) -> Path:
    """Where a directory is written until it is whole."""
    return target.with_name(f".{target.name}.incomplete")


def begin(target: Path) -> Path:
    """Make the empty directory, next to `target`, that `commit` will give its name. One rank calls it."""
    temporary = unfinished(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    return temporary


def commit(temporary: Path, target: Path) -> None:
    """Give a finished directory its name. What stood there stays until it is on disk. One rank calls it."""
    sync_tree(temporary)
    old = target.with_name(f".{target.name}.replaced")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        temporary.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover(directory: Path, pattern: str) -> None:
    """Undo what killed writers left of the names that match `pattern`. One rank calls it, while nobody writes.

    A directory that was moved aside for a successor that never came gets its name back; what is unfinished, replaced or
    half removed is deleted. Nothing that has its own name is touched.
    """
    for old in directory.glob(f".{pattern}.replaced"):
        target = old.with_name(old.name[1:].removesuffix(".replaced"))
        if not target.exists():
            old.rename(target)
    for kind in ("incomplete", "replaced", "pruned"):
        for rest in directory.glob(f".{pattern}.{kind}"):
            shutil.rmtree(rest, ignore_errors=True)


def _system_error(failure: BaseException | None) -> OSError | None:
    """The error of the system that a failure is; libraries in Rust (safetensors, tokenizers) report it as text."""
    if isinstance(failure, OSError):
        return failure
    found = re.search(r"\(os error (\d+)\)", str(failure))
    return None if found is None else OSError(int(found[1]), os.strerror(int(found[1])))


def agree(failure: BaseException | None, target: Path, temporary: Path | None) -> None:
    """If any rank failed, remove `temporary` (None: there is none of ours) and raise on all of them. Collective.

    Raises TrainingError for a full disk and for other ranks' failures, and what failed here otherwise.
    """
    shared = None if isinstance(failure, KeyboardInterrupt) else first_error(failure)
    if failure is None and shared is None:
        return
    if is_main() and temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)
    system = _system_error(failure)
    full = system is not None and system.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "No space left" in f"{failure} {shared}":
        raise TrainingError(
            f"the disk is full: {target} was not written, and what was saved before is untouched; free some space"
        ) from failure
    if system is not None:
        raise TrainingError(f"{target} could not be written: {system}") from failure
    if failure is not None:
        raise failure
    raise TrainingError(f"{target} was not written, because another rank failed: {shared}")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary directory next to `target`; on success it replaces `target`, on failure it is removed.

    Every rank calls it; rank 0 makes, renames and removes, under a lock: another process that writes `target` gets
    LockHeld, which names this one. What stood at `target` stays until the new directory is complete on disk. A full
    disk raises TrainingError and leaves the old one alone.
    """
    target = Path(target).resolve()
    temporary = unfinished(target)
    failure: BaseException | None = None
    with ExitStack() as stack:
        try:
            if is_main():
                target.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(target.with_name(f".{target.name}.lock"), str(target)))
        except (BridgeError, OSError) as error:
            failure = error
        agree(failure, target, None)
        try:
            if is_main():
                begin(target)
        except OSError as error:
            failure = error
        agree(failure, target, temporary)
        try:
            yield temporary
        except BaseException as error:
            failure = error
        agree(failure, target, temporary)
        try:
            if is_main():
                commit(temporary, target)
        except OSError as error:
            failure = error
        agree(failure, target, temporary)
