"""Sharded tensors in Megatron's torch_dist format: who writes which piece, the writing, and the reading of any part.

Pieces are `megatron.core.dist_checkpointing.ShardedTensor`s, its planners make the write and read items, and the files
are the ones that `dist_checkpointing.load` reads. Two things are done here instead of by `dist_checkpointing.save`:
planning, because there each rank must name its replicas, and the ranges of a distributed optimizer have no grid that
says who they are (here ranks that hold the same piece are found, and share the writing); and the background writing, by
a thread, because Megatron's forks a process, which neither gloo nor a script without a main guard survives.

Nothing that is read can run code: the metadata file is unpickled with a closed list of classes, tensors with torch's
`weights_only`. Checksums are the caller's to verify before.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreLoadPlanner,
    MCoreSavePlanner,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, FileSystem
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from bridge_mcore.checkpoint.dcp_pickle import MetadataUnpickler, check_entry
from bridge_mcore.checkpoint.finite import require_finite
from bridge_mcore.checkpoint.manifest import FileEntry, checksum, write_file
from bridge_mcore.config.json_file import one_line
from bridge_mcore.errors import CheckpointError, TrainingError

METADATA = ".metadata"
_WEIGHTS = ("theta/", "w/", "slot/")
_MOST_BYTES = 512 << 20  # of the metadata: a million pieces take less


@dataclass(frozen=True)
class Plan:
    """What a save writes: the indices of this rank's pieces, and on rank 0 where every piece of the world lies."""

    signature: list[tuple]
    mine: list[int]
    tensors: dict[str, TensorStorageMetadata] | None


def make_plan(pieces: list[ShardedTensor], previous: Plan | None, device: torch.device) -> Plan:
    """Share the pieces among the ranks that hold them, by bytes; each is written once. Collective.

    A run saves the same pieces again and again: `previous` is used if no rank's have changed. Raises TrainingError on
    every rank if the pieces of a tensor overlap, or leave a part of it out.
    """
    signature = [(p.key, p.global_offset, p.local_shape, p.global_shape, p.dtype) for p in pieces]
    changed = torch.tensor(int(previous is None or previous.signature != signature), device=device)
    dist.all_reduce(changed, op=dist.ReduceOp.MAX)
    if previous is not None and not changed:
        return previous
    rank, world = dist.get_rank(), dist.get_world_size()
    everyones: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(signature, everyones)
    shares: list[Any] = [None] * world
    tensors: dict[str, TensorStorageMetadata] = {}
    if everyones is not None:
        holders: dict[tuple, list[tuple[int, int]]] = {}
        for holder, theirs in enumerate(everyones):
            for index, piece in enumerate(theirs):
                holders.setdefault(piece, []).append((holder, index))
        owned: list[list[int]] = [[] for _ in range(world)]
        loads = [0] * world
        # The largest first, so that the small ones even out the loads.
        for piece in sorted(holders, key=lambda p: -_elements(p[2])):
            owner, index = min(holders[piece], key=lambda at: loads[at[0]])
            loads[owner] += _elements(piece[2]) * piece[4].itemsize
            owned[owner].append(index)
        problem = _describe(holders, tensors)
        shares = [(problem, sorted(indices)) for indices in owned]
    mine: list[Any] = [None]
    dist.scatter_object_list(mine, shares)
    problem, indices = mine[0]
    if problem:
        raise TrainingError(f"no checkpoint can be written: {problem}; this is a fault of the program")
    return Plan(signature, indices, tensors if rank == 0 else None)


def _elements(shape: tuple[int, ...]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def _describe(pieces: Iterable[tuple], tensors: dict[str, TensorStorageMetadata]) -> str | None:
    """Fill `tensors` with the whole tensors that the pieces make up; what is wrong with them, if anything."""
    for key, offset, shape, whole, dtype in pieces:
        entry = tensors.setdefault(key, TensorStorageMetadata(TensorProperties(dtype), torch.Size(whole), []))
        if entry.size != torch.Size(whole) or entry.properties.dtype != dtype:
            return f"two ranks disagree about the shape or dtype of {key}"
        if any(o + n > end for o, n, end in zip(offset, shape, whole, strict=True)):
            return f"a piece of {key} lies outside of it"
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offset), torch.Size(shape)))
    for key, entry in tensors.items():
        held = sum(_elements(tuple(chunk.sizes)) for chunk in entry.chunks)
        if held != _elements(tuple(entry.size)):
            return f"the ranks hold {held} of the {_elements(tuple(entry.size))} elements of {key}"
    return None


def _require_finite(piece: ShardedTensor, directory: Path) -> None:
    """Raise CheckpointError for weights (not moments) that are not finite: a run cannot go on from them."""
    if piece.key.startswith(_WEIGHTS) and piece.data is not None:
        require_finite(piece.key, piece.data, directory)


class _Tap:
    """A file that keeps the checksum of what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.crc = 0

    def write(self, data: Any) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self.stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _CheckedFiles(FileSystem):
    """DCP's file system, which also remembers each file's checksum as it was meant to be written."""

    def __init__(self) -> None:
        self.crcs: dict[str, int] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            tap = _Tap(stream)
            yield tap
        self.crcs[Path(path).name] = tap.crc


def write_pieces(directory: Path, pieces: list[ShardedTensor]) -> tuple[dict[str, FileEntry], list[WriteResult]]:
    """Write this rank's share (on the host) to a file of its own, and read it back. No collectives: runs in a thread.

    Returns the files with their checksums, and DCP's record of where in them each piece lies.
    Raises OSError for a full disk, TrainingError for a file that does not read back as it was written, CheckpointError
    for weights that are not finite.
    """
    if not pieces:
        return {}, []
    for piece in pieces:
        _require_finite(piece, directory)
    by_key: dict[str, list[Any]] = {}
    for piece in pieces:
        by_key.setdefault(piece.key, []).append(piece)
    planner = MCoreSavePlanner(flatten_state_dict=False)
    planner.set_up_planner(mcore_to_pyt_state_dict(by_key))
    writer = FileSystemWriter(directory, per_thread_copy_ahead=0)
    writer.fs = files = _CheckedFiles()
    writer.set_up_storage_writer(False, rank=dist.get_rank(), use_collectives=False)
    try:
        results = writer.write_data(writer.prepare_local_plan(planner.create_local_plan()), planner).value()
    except RuntimeError as error:  # torch.save reports a failed write of the file below it in its own words
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    entries = {}
    for name, crc in files.crcs.items():
        if checksum(directory / name, cold=True) != crc:
            raise TrainingError(f"{directory / name} does not read back as it was written: the disk is at fault")
        entries[name] = FileEntry(bytes=(directory / name).stat().st_size, crc32=crc)
    return entries, results


def write_metadata(
    directory: Path, tensors: Mapping[str, Any], stored: dict[MetadataIndex, Any]
) -> dict[str, FileEntry]:
    """Write what makes the ranks' files one torch_dist checkpoint. Rank 0 calls it.

    `tensors`: what there is, by name. `stored`: where in which file each piece lies.
    """
    metadata = Metadata(dict(tensors), storage_data=stored, storage_meta=StorageMeta(), version=CURRENT_DCP_VERSION)
    common = io.BytesIO()
    torch.save({}, common)
    config = {
        "sharded_backend": "torch_dist", "sharded_backend_version": 1,
        "common_backend": "torch", "common_backend_version": 1,
    }  # fmt: skip
    return {
        METADATA: write_file(directory / METADATA, pickle.dumps(metadata)),
        "common.pt": write_file(directory / "common.pt", common.getvalue()),
        "metadata.json": write_file(directory / "metadata.json", json.dumps(config).encode()),
    }


def read_metadata(
    directory: Path, files: Collection[str], others: bool = False
) -> tuple[Metadata, dict[str, TensorStorageMetadata]]:
    """Where every stored tensor's pieces lie, and the tensors by name.

    `others`: Megatron's own checkpoints hold pickled objects too, which are passed over. Raises CheckpointError for
    what is no such metadata, or points to other files than those of the checkpoint.
    """
    path = directory / METADATA
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is far larger than any checkpoint's")
        metadata = MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
        entries = {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, TensorStorageMetadata)}
        places = {info.relative_path for info in metadata.storage_data.values()}
        stored: dict[str, list[Any]] = {}
        for index, info in metadata.storage_data.items():
            stored.setdefault(index.fqn, []).append(info)
        for key, entry in entries.items():
            check_entry(key, entry, stored.get(key, []))
    except Exception as error:  # an unpickler can raise nearly anything
        raise CheckpointError(f"{path} is damaged: {one_line(error) or type(error).__name__}") from error
    if len(entries) != len(metadata.state_dict_metadata) and not others:
        raise CheckpointError(f"{path} holds objects that are no tensors; they are not loaded")
    if not places <= set(files):
        raise CheckpointError(f"{path} names files that are not of the checkpoint: {sorted(places - set(files))[:3]}")
    ends: dict[str, int] = {}
    for info in metadata.storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in ends.items():
        if (directory / name).stat().st_size < end:
            raise CheckpointError(f"{directory / name} is truncated: {METADATA} says that it has {end} bytes")
    return metadata, entries


def read_pieces(directory: Path, metadata: Metadata, pieces: list[ShardedTensor]) -> None:
    """Fill the pieces' tensors, in place, from whatever pieces are stored. No collectives.

    Raises CheckpointError if anything cannot be read, a part of a piece is in no file, or weights are not finite.
    """
    by_key: dict[str, list[Any]] = {}
    for piece in pieces:
        by_key.setdefault(piece.key, []).append(piece)
    wanted = sum(_elements(p.local_shape) for p in pieces)
    try:
        planner = MCoreLoadPlanner(
            shapes_validation_sharded_tensors=pieces, flatten_state_dict=False, flatten_sharded_tensors=False
        )
        planner.set_up_planner(mcore_to_pyt_state_dict(by_key, is_loading=True), metadata)
        plan = planner.create_local_plan()
        found = sum(_elements(tuple(item.lengths)) for item in plan.items)
        if found != wanted:
            raise CheckpointError(f"{directory} lacks {wanted - found} of the {wanted} elements that this rank needs")
        reader = FileSystemReader(directory)
        reader.set_up_storage_reader(metadata, False)
        reader.read_data(reader.prepare_local_plan(plan), planner)
        for piece in pieces:
            _require_finite(piece, directory)
    except CheckpointError:
        raise
    except Exception as error:  # torch's unpickler, its zip reader and DCP raise nearly anything
        raise CheckpointError(f"{directory} cannot be read: {type(error).__name__}: {one_line(error)}") from error
