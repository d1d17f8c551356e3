"""Megatron distributed checkpoints (torch_dist) written from any source of HF tensors, piece by piece.

The tensors are those of `GPTModel.sharded_state_dict()`, all layers of a parameter in one, so that
`megatron.core.dist_checkpointing.load` reads them in any layout. The layout that is asked for decides which file holds
what: what one of its ranks loads lies together.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import lcm, prod
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from bridge_mcore.checkpoint.finite import is_finite, not_finite
from bridge_mcore.checkpoint.hf_out import BLOCK, cast
from bridge_mcore.checkpoint.megatron import Place, places
from bridge_mcore.checkpoint.rows import parameter_rows
from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.checkpoint.safetensors_file import SteadyFile, blocks
from bridge_mcore.checkpoint.sharded import write_metadata
from bridge_mcore.checkpoint.staging import Output, Tick
from bridge_mcore.config.schema import Parallel
from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.families.mapping import Plain

_EMPTY_STATE = "__extra_0.distcp"
_ARCHIVE = 1200  # bytes that torch.save adds to a tensor, about
_COLUMN_PARALLEL = ("linear_qkv.", "linear_fc1.", "word_embeddings.", "output_layer.")
_ROW_PARALLEL = ("linear_proj.weight", "linear_fc2.weight")
#: Modules for which Transformer Engine's layers, or Megatron's, expect a state beside their weights (it may be empty).
_STATEFUL = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")
_STATEFUL_MLP = ("mlp.linear_fc1", "mlp.linear_fc2")
_STATEFUL_EXPERTS = ("mlp.experts.experts.linear_fc1", "mlp.experts.experts.linear_fc2")


@dataclass(frozen=True)
class Piece:
    """A part of a stored tensor, and the rows and columns of the parameter that it is."""

    place: Place
    mapping: Plain
    rows: tuple[int, int]
    columns: tuple[int, int] | None
    whole: tuple[int, ...]  # of the stored tensor
    dtype: torch.dtype

    @property
    def offset(self) -> tuple[int, ...]:
        return (*self.place.index, self.rows[0], *((self.columns or (0,))[:1] if len(self.own) == 2 else ()))

    @property
    def own(self) -> tuple[int, ...]:
        """Shape of the part in the parameter."""
        width = self.whole[len(self.place.index) + 1 :]
        return (self.rows[1] - self.rows[0], *((self.columns[1] - self.columns[0],) if self.columns else width))

    @property
    def nbytes(self) -> int:
        return prod(self.own) * self.dtype.itemsize


def split_dim(name: str) -> int | None:
    """The dimension along which tensor parallelism splits a parameter; experts are whole on their rank."""
    if ".local_experts." in name:
        return None
    if name.endswith(_ROW_PARALLEL):
        return 1
    return 0 if any(part in name for part in _COLUMN_PARALLEL) else None


def stage_of(layer: int, layers: int, parallel: Parallel) -> int:
    """Pipeline stage of a layer: virtual stages in turn; if they do not divide the layers, the first get more."""
    parts = parallel.pipeline * parallel.virtual_pipeline
    few, more = divmod(layers, parts)
    edge = more * (few + 1)
    part = layer // (few + 1) if layer < edge else more + (layer - edge) // max(few, 1)
    return part % parallel.pipeline


def pieces(
    source: TensorSource, family: Family, shape: ModelShape, parallel: Parallel, dtype: torch.dtype | None, pad_to: int
) -> dict[str, list[Piece]]:
    """What each file holds. `pad_to`: the vocabulary is padded to a multiple of it (and of the tensor ranks)."""
    files: dict[str, list[Piece]] = {}
    for mapping in family.mappings(shape):
        kinds = {dtype or source.dtype(name) for name in mapping.hf}
        if len(kinds) > 1:
            raise CheckpointError(
                f"{', '.join(mapping.hf)} are of {len(kinds)} dtypes, but one parameter in Megatron; give --dtype"
            )
        kind = kinds.pop()
        shapes = [source.shape(name) for name in mapping.hf]
        total = mapping.padded(sum(s[0] for s in shapes), lcm(pad_to, parallel.tensor))
        options = places(mapping.mcore)
        # A norm before experts has either name, according to the layers that a Megatron model is built of.
        both = shape.experts and mapping.mcore.endswith("pre_mlp_layernorm.weight")
        for place in options[:2] if both else options[:1]:
            lead = tuple(n for n, _ in zip((shape.layers, shape.experts), place.index, strict=False))
            whole = (*lead, total, *shapes[0][1:])
            stage = stage_of(place.index[0], shape.layers, parallel) if place.index else _edge(mapping.mcore, parallel)
            if len(place.index) == 2:
                rank = place.index[1] * parallel.expert // shape.experts
                name = f"__{parallel.pipeline * parallel.tensor + stage * parallel.expert + rank}_0.distcp"
                files.setdefault(name, []).extend(_cut(Piece(place, mapping, (0, total), None, whole, kind)))
                continue
            for rank, piece in _split(Piece(place, mapping, (0, total), None, whole, kind), parallel.tensor):
                files.setdefault(f"__{stage * parallel.tensor + rank}_0.distcp", []).extend(_cut(piece))
    return files


def _edge(name: str, parallel: Parallel) -> int:
    """Stage of what is no layer."""
    return 0 if name.startswith("embedding.") else parallel.pipeline - 1


def _split(piece: Piece, size: int) -> Iterator[tuple[int, Piece]]:
    """(tensor rank, its part of the piece)."""
    dim = split_dim(piece.mapping.mcore) if size > 1 else None
    if dim is None:
        yield 0, piece
    elif dim == 0:
        for rank in range(size):
            for rows in piece.mapping.shard_rows(piece.rows[1], rank, size):
                yield rank, Piece(piece.place, piece.mapping, rows, None, piece.whole, piece.dtype)
    else:
        width = piece.whole[-1] // size
        for rank in range(size):
            columns = (rank * width, (rank + 1) * width)
            yield rank, Piece(piece.place, piece.mapping, piece.rows, columns, piece.whole, piece.dtype)


def _cut(piece: Piece) -> Iterator[Piece]:
    """Parts of at most a block, and within one of the parameter's stacks, as Megatron's own pieces are."""
    rows, stacks = piece.whole[len(piece.place.index)], piece.mapping.stacks
    edges = [rows // stacks * i for i in range(stacks + 1)]
    width = prod(piece.own[1:]) * piece.dtype.itemsize
    for first, end in pairwise(edges):
        low, high = max(first, piece.rows[0]), min(end, piece.rows[1])
        for a, b in blocks(max(high - low, 0), width, BLOCK):
            yield Piece(piece.place, piece.mapping, (low + a, low + b), piece.columns, piece.whole, piece.dtype)


def megatron_outputs(source: TensorSource, shape: ModelShape, files: dict[str, list[Piece]]) -> list[Output]:
    """The files that hold the pieces. Their results say where in the file each piece lies."""

    def output(name: str, held: list[Piece]) -> Output:
        def write(path: Path, tick: Tick) -> list[Any]:
            with io.BufferedWriter(SteadyFile(path, "w")) as file:
                found = []
                for piece in held:
                    part = parameter_rows(source, piece.mapping, shape, piece.rows, piece.columns)
                    if not is_finite(part):
                        raise not_finite(source, piece.mapping.hf)
                    part = cast(part, piece.dtype, piece.mapping.hf[0])
                    if part.untyped_storage().nbytes() != part.nbytes or not part.is_contiguous():
                        part = part.clone(memory_format=torch.contiguous_format)  # torch.save writes whole storages
                    start = file.tell()
                    torch.save(part.view(*(1,) * len(piece.place.index), *piece.own), file)
                    found.append([start, file.tell() - start])
                    tick(piece.nbytes)
                file.flush()
                os.fsync(file.fileno())
            return found

        return Output(name, sum(p.nbytes + _ARCHIVE for p in held), write)

    return [output(name, held) for name, held in sorted(files.items())]


def finish_megatron(
    directory: Path, shape: ModelShape, files: dict[str, list[Piece]], results: dict[str, list[list[int]]]
) -> None:
    """Write what makes the files one checkpoint."""
    tensors: dict[str, Any] = {}
    stored: dict[MetadataIndex, _StorageInfo] = {}
    for name, held in sorted(files.items()):
        for piece, (start, length) in zip(held, results[name], strict=True):
            key = piece.place.key
            entry = tensors.setdefault(
                key, TensorStorageMetadata(TensorProperties(piece.dtype), torch.Size(piece.whole), [])
            )
            offset = torch.Size(piece.offset)
            size = torch.Size((*(1,) * len(piece.place.index), *piece.own))
            stored[MetadataIndex(key, offset, len(entry.chunks))] = _StorageInfo(name, start, length)
            entry.chunks.append(ChunkStorageMetadata(offset, size))
    for key, entry in tensors.items():
        held_elements = sum(prod(c.sizes) for c in entry.chunks)
        if held_elements != prod(entry.size):
            raise CheckpointError(f"{key}: {held_elements} of {prod(entry.size)} elements were written; this is a bug")
    empty = io.BytesIO()
    torch.save([None], empty)  # a list, as Megatron saves the objects of one name
    (directory / _EMPTY_STATE).write_bytes(empty.getvalue())
    for key in _empty_states(shape):
        tensors[key] = BytesStorageMetadata()
        stored[MetadataIndex(key)] = _StorageInfo(_EMPTY_STATE, 0, len(empty.getvalue()))
    write_metadata(directory, tensors, stored)


def _empty_states(shape: ModelShape) -> Iterable[str]:
    """Names under which layers look for a state of their own. All mean the same few bytes: it is empty."""
    for name in ("output_layer", "decoder.final_layernorm"):
        yield f"{name}._extra_state/shard_0_1"
    for layer in range(shape.layers):
        for name in (*_STATEFUL, *(() if shape.experts else _STATEFUL_MLP)):
            yield f"decoder.layers.{name}._extra_state/shard_{layer}_{shape.layers}"
        for name, expert in ((n, e) for n in _STATEFUL_EXPERTS for e in range(shape.experts)):
            yield f"decoder.layers.{name}._extra_state/shard_{layer}.{expert}_{shape.layers}.{shape.experts}"
