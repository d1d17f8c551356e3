"""Checkpoints of a run: every slot, both groups' optimizer state, data position and RNG, exactly as they were.

A checkpoint is a directory `step_00000042` that appears only when it is complete. In it are tensors in Megatron's
torch_dist format (checkpoint.sharded), `state.json` with all the rest (checkpoint.trained), and `checkpoint.json`, the
manifest, with the sizes and checksums of all of them. It can be resumed on any layout: on the one that wrote it bit for
bit; on another the tensors are the same bits, and only sums in another order differ from then on.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from bridge_mcore.checkpoint import atomic
from bridge_mcore.checkpoint.manifest import (
    FileEntry,
    list_checkpoints,
    prune,
    read_manifest,
    verify_files,
    write_file,
    write_manifest,
)
from bridge_mcore.checkpoint.sharded import (
    Plan,
    make_plan,
    read_metadata,
    read_pieces,
    write_metadata,
    write_pieces,
)
from bridge_mcore.checkpoint.trained import Trained, merge_states, parse_state
from bridge_mcore.errors import BridgeError, CheckpointError, TrainingError
from bridge_mcore.platform.distributed import all_arrive

if TYPE_CHECKING:
    from bridge_mcore.training.policy import Policy

__all__ = ["CheckpointWriter", "list_checkpoints", "load_state", "prune", "read_manifest", "save_state"]

_STATE = "state.json"
#: Entries of `layout` that a resume must repeat; the others are sizes of the layout, which may change.
_FIXED = ("method", "optimizer")
#: How long ranks wait for one another after a failure: less than a launcher leaves them.
_RESCUE_SECONDS = 10.0


@dataclass
class _Writing:
    """One save under way on this rank."""

    target: Path
    temporary: Path
    step: int
    layout: dict[str, Any]
    state: bytes | None  # on rank 0
    pieces: list[ShardedTensor]
    files: dict[str, FileEntry] = field(default_factory=dict)
    results: list[Any] = field(default_factory=list)
    failure: Exception | None = None
    thread: threading.Thread | None = None
    #: Whether the thread has written all. Not its `is_alive` or `join`: a Ctrl-C in a join has Python (3.11) take a
    #: thread that still runs for one that has ended.
    done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            self.files, self.results = write_pieces(self.temporary, self.pieces)
        except CheckpointError as error:  # weights that are not finite: it is the run that has failed
            self.failure = TrainingError(str(error))
        except Exception as error:  # the ranks agree on it in the main thread
            self.failure = error
        self.pieces = []
        self.done.set()


class CheckpointWriter:
    """Writes a run's checkpoints, in the background if `asynchronous`, and keeps the newest `keep` (None: all).

    A background save copies what this rank writes to host memory and returns; training goes on while a thread writes.
    It gets its name in a later `poll` or `finish`: all methods are collective, and a failed write raises
    TrainingError there, on every rank. Older checkpoints go only after the new one is complete and verified.

    As a context manager it finishes what is being written however the block ends: nothing that fails while a step is
    taken costs the checkpoint of the one before, unless ranks are lost with it.
    """

    def __init__(self, directory: Path, keep: int | None = None, asynchronous: bool = False) -> None:
        self.directory = Path(directory).resolve()
        self.keep = keep
        self.asynchronous = asynchronous
        self._device = torch.device("cpu")
        self._writing: _Writing | None = None
        self._plan: Plan | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self.finish()
        elif self._writing is not None and self._writing.thread is not None:
            self._rescue(self._writing)

    def _rescue(self, writing: _Writing) -> None:
        """After a failure: finish if all ranks are still there to do so; at least let no thread write on."""
        problem = "other ranks are gone"
        if all_arrive(_RESCUE_SECONDS):
            try:
                self.finish()
                return
            except (BridgeError, RuntimeError) as error:  # what the block has raised is what the user must read
                problem = str(error)
        writing.done.wait()
        print(f"warning: {writing.target} could not be finished: {problem}", file=sys.stderr, flush=True)

    def save(self, policy: Policy, step: int, extra: dict[str, Any], layout: dict[str, Any]) -> Path:
        """Save as `directory`/step_N; waits for an earlier save. Returns that path, which may not be there yet.

        Args:
            extra: JSON-able state of everything that is no tensor (samplers, counters); rank 0's is saved.
            layout: sizes of the layout, method and optimizer (see `load_state`).
        """
        self.finish()
        self._device = policy.platform.device
        target = self.directory / f"step_{step:08d}"
        temporary = atomic.unfinished(target)
        failure: Exception | None = None
        trained, pieces, part = None, [], None
        try:
            if atomic.is_main():
                atomic.recover(self.directory, "step_*")
                atomic.begin(target)
            trained = Trained(policy)
            pieces, part = trained.pieces(stored_only=True), trained.state()
        except Exception as error:
            failure = error
        atomic.agree(failure, target, temporary)
        self._plan = make_plan(pieces, self._plan, self._device)
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(part, parts)
        writing = _Writing(target, temporary, step, layout, None, [])
        try:
            writing.state = None if parts is None else merge_states(parts, extra)
            writing.pieces = self._snapshot(policy, [pieces[i] for i in self._plan.mine])
        except Exception as error:
            failure = error
        atomic.agree(failure, target, temporary)
        if not self.asynchronous:
            self._writing = writing
            writing.run()
            self._complete()
            return target
        # Not a daemon: a process that ends lets it finish, instead of tearing it down inside torch.
        writing.thread = threading.Thread(target=writing.run, name=f"checkpoint of step {step}")
        writing.thread.start()
        self._writing = writing  # from here on it is waited for, so the thread must run
        return target

    def _snapshot(self, policy: Policy, pieces: list[ShardedTensor]) -> list[ShardedTensor]:
        """The pieces on the host: copies, unless they are there and the save is done before anything changes."""
        for piece in pieces:
            assert piece.data is not None
            if self.asynchronous or piece.data.device.type != "cpu":
                host = policy.platform.host_memory(piece.data)
                piece.data = host.copy_(piece.data, non_blocking=True)
        policy.platform.synchronize()
        return pieces

    def poll(self) -> Path | None:
        """Give a background save its name if all ranks have written theirs. The new checkpoint, or None. Collective."""
        if self._writing is None:
            return None
        done = torch.tensor(int(self._writing.done.is_set()), device=self._device)
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return self._complete() if done else None

    def finish(self) -> Path | None:
        """Wait for a background save and give it its name. The new checkpoint, or None. Collective."""
        if self._writing is None:
            return None
        self._writing.done.wait()
        return self._complete()

    def _complete(self) -> Path:
        """Finish the save that all ranks have written: metadata, manifest, name; then prune. Collective."""
        writing, self._writing = self._writing, None
        assert writing is not None and self._plan is not None and writing.done.is_set()
        atomic.agree(writing.failure, writing.target, writing.temporary)
        main = dist.get_rank() == 0
        written: list[Any] | None = [None] * dist.get_world_size() if main else None
        dist.gather_object((writing.files, writing.results), written)
        failure: Exception | None = None
        try:
            if written is not None and writing.state is not None and self._plan.tensors is not None:
                files = {name: entry for entries, _ in written for name, entry in entries.items()}
                stored = {r.index: r.storage_data for _, results in written for r in results}
                files |= write_metadata(writing.temporary, self._plan.tensors, stored)
                files[_STATE] = write_file(writing.temporary / _STATE, writing.state)
                write_manifest(writing.temporary, writing.step, writing.layout, files)
                read_manifest(writing.temporary)  # every rank's file is seen from here, in full length
                atomic.commit(writing.temporary, writing.target)
                if self.keep is not None:
                    prune(self.directory, self.keep)
        except Exception as error:
            failure = error
        atomic.agree(failure, writing.target, writing.temporary)
        return writing.target


def save_state(directory: Path, policy: Policy, step: int, extra: dict[str, Any], layout: dict[str, Any]) -> Path:
    """Write `directory`/step_N and wait until it is complete (see `CheckpointWriter.save`). Collective."""
    return CheckpointWriter(directory).save(policy, step, extra, layout)


def load_state(
    directory: Path,
    policy: Policy,
    layout: dict[str, Any],
    remarks: list[str] | None = None,
    verified: bool = False,
) -> tuple[int, dict[str, Any]]:
    """Restore everything that a save wrote, on this layout or another. Returns (step, extra). Collective.

    Args:
        layout: this run's; `method` and `optimizer` must be those of the checkpoint, sizes may differ.
        remarks: lines for the user are appended to it.
        verified: the checksums have been looked at already.
    Raises:
        CheckpointError: on every rank, for a file that is missing or corrupt, another method, optimizer, model or set
            of slots, and any tensor that is missing or left over: moments are never dropped.
    """
    directory = Path(directory)
    failure: BaseException | None = None
    manifest: dict[str, Any] = {}
    try:
        manifest = read_manifest(directory)
        _check_fixed(directory, manifest["layout"], layout)
        if not verified:
            verify_files(directory, manifest, dist.get_rank(), dist.get_world_size())
    except CheckpointError as error:
        failure = error
    _agree(failure)
    pieces: list[ShardedTensor] = []
    problems: list[str] = []
    needed: set[str] = set()
    try:
        metadata, stored = read_metadata(directory, manifest["files"])
        saved = _read_state(directory)
        trained = Trained(policy)
        problems = trained.prepare(saved, lambda key: stored[key].properties.dtype if key in stored else None)
        pieces = [] if problems else trained.pieces(stored_only=False)
        needed = {piece.key for piece in pieces}
        problems += _misfits(pieces, stored)
    except CheckpointError as error:
        failure = error
    _agree(failure)
    if not _any(bool(problems), policy):
        problems = [f"'{key}' has no place" for key in _left_over(sorted(stored), needed, policy)]
    if problems:
        failure = CheckpointError(
            f"{directory} does not fit this run: {'; '.join(problems[:6])} ({len(problems)} in all)"
        )
    _agree(failure)
    try:
        trained.clear_padding()
        read_pieces(directory, metadata, pieces)
    except CheckpointError as error:
        failure = error
    _agree(failure)
    trained.restore_steps(saved)
    policy.optimizer.publish()
    if manifest["layout"] == layout and len(saved["rng"]) == dist.get_world_size():
        trained.restore_rng(saved["rng"][dist.get_rank()])
    elif remarks is not None:
        remarks.append(
            f"· {directory} was written on another layout: the tensors are the same, but torch's random number "
            "streams start anew, and sums in another order round differently"
        )
    return manifest["step"], saved["extra"]


def read_extra(directory: Path) -> tuple[int, Any]:
    """(step, extra) of a checkpoint, without its tensors. Collective; raises CheckpointError on every rank."""
    failure: BaseException | None = None
    step, extra = 0, None
    try:
        step, extra = read_manifest(directory)["step"], _read_state(directory)["extra"]
    except CheckpointError as error:
        failure = error
    _agree(failure)
    return step, extra


def _read_state(directory: Path) -> dict[str, Any]:
    try:
        return parse_state((directory / _STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{directory / _STATE} cannot be read: {error}") from error


def _check_fixed(directory: Path, saved: dict[str, Any], layout: dict[str, Any]) -> None:
    for key in _FIXED:
        if saved.get(key) != layout.get(key):
            raise CheckpointError(
                f"{directory} was written by a run with {key} '{saved.get(key)}', this one has '{layout.get(key)}': "
                "they must be equal to resume"
            )


def _misfits(pieces: list[ShardedTensor], stored: dict[str, TensorStorageMetadata]) -> list[str]:
    """Pieces whose whole tensor is not stored, or in another shape or dtype."""
    found: dict[str, None] = {}
    for piece in pieces:
        entry = stored.get(piece.key)
        if entry is None:
            found[f"'{piece.key}' is missing"] = None
        elif tuple(entry.size) != piece.global_shape:
            found[f"'{piece.key}' is {tuple(entry.size)}, this run needs {tuple(piece.global_shape)}"] = None
        elif entry.properties.dtype != piece.dtype:
            found[f"'{piece.key}' is {entry.properties.dtype}, this run needs {piece.dtype}"] = None
    return list(found)


def _any(flag: bool, policy: Policy) -> bool:
    found = torch.tensor(int(flag), device=policy.platform.device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def _left_over(names: list[str], needed: set[str], policy: Policy) -> list[str]:
    """Stored tensors that no rank needs. Collective."""
    used = torch.tensor([name in needed for name in names], dtype=torch.uint8, device=policy.platform.device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    return [name for name, there in zip(names, used.tolist(), strict=True) if not there]


def _agree(failure: BaseException | None) -> None:
    """Raise what failed here, or elsewhere, as CheckpointError on every rank. Collective."""
    shared = atomic.first_error(failure)
    if failure is not None:
        raise failure
    if shared is not None:
        raise CheckpointError(shared.removeprefix("CheckpointError: "))
