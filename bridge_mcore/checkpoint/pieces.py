"""Where a rank's piece of a parameter lies in the whole tensor, whatever the layout.

Two cuts make a piece. Tensor parallelism gives a rank one shard of the parameter: a block of its rows or columns. The
distributed optimizer then gives each data-parallel rank a contiguous range of the flattened shard, for masters, moments
and slots alike. A range of an [r, c] matrix is at most three rectangles (the rest of a row, whole rows, the start of a
row), so every piece can be stored with its place in the whole tensor, and nothing is gathered.

Three parameters are not stored as Megatron holds them, because its form depends on the layout: the fused gate and up
projections are two tensors (each rank's shard is [gate; up]), embedding rows that only pad the vocabulary to a multiple
of the tensor ranks are left out, and the copy of a tied embedding on the last pipeline stage is the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron.core import parallel_state as mpu
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from bridge_mcore.errors import CheckpointError
from bridge_mcore.model.families.base import ModelShape

EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"


class Split(NamedTuple):
    """How tensor parallelism splits a parameter: the dimension (None: replicated), this rank's part, the parts."""

    dim: int | None = None
    rank: int = 0
    size: int = 1


def split_of(parameter: Any) -> Split:
    """The split that Megatron's marks on a parameter declare; experts have tensor ranks of their own."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return Split()
    if not getattr(parameter, "allreduce", True):  # Megatron's mark of an expert's parameter
        rank, size = mpu.get_expert_tensor_parallel_rank(), mpu.get_expert_tensor_parallel_world_size()
    else:
        rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    return Split(parameter.partition_dim, rank, size) if size > 1 else Split()


@dataclass(frozen=True)
class Band:
    """Local rows `first` to `first + rows` of a parameter, and where they lie in the stored tensor `name`."""

    name: str
    shape: tuple[int, ...]  # of the stored tensor
    first: int
    rows: int
    row: int  # of the stored tensor, where the band's first row lies
    column: int = 0


def bands_of(name: str, local: tuple[int, ...], split: Split, shape: ModelShape) -> list[Band]:
    """The bands of a parameter of local shape [n] or [r, c]; rows in none of them are padding."""
    if len(local) not in (1, 2):
        raise CheckpointError(f"{name} has {len(local)} dimensions; only vectors and matrices are stored")
    dim, rank, size = split
    rows = local[0]
    if name == OUTPUT and shape.tied:
        name = EMBEDDING
    if name in (EMBEDDING, OUTPUT):
        first = rank * rows
        true = min(max(shape.vocab_size - first, 0), rows)
        return [Band(name, (shape.vocab_size, *local[1:]), 0, true, first)] if true else []
    if name.endswith((".linear_fc1.weight", ".linear_fc1.bias")):
        half = rows // 2
        whole = (half * size if dim == 0 else half, *local[1:])
        row = rank * half if dim == 0 else 0
        return [Band(f"{name}.{part}", whole, i * half, half, row) for i, part in enumerate(("gate", "up"))]
    whole = tuple(n * size if i == dim else n for i, n in enumerate(local))
    return [Band(name, whole, 0, rows, rank * rows if dim == 0 else 0, rank * local[1] if dim == 1 else 0)]


def rectangles(low: int, high: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut elements [low, high) of a matrix with `width` columns, flattened, into (row, column, rows, columns).

    At most three, in order, each contiguous in the flattened matrix.
    """
    while low < high:
        row, column = divmod(low, width)
        if column or high - low < width:
            rows, columns = 1, min(width - column, high - low)
        else:
            rows, columns = (high - low) // width, width
        yield row, column, rows, columns
        low += rows * columns


@dataclass(frozen=True)
class Held:
    """A parameter as this rank's optimizer holds it: elements [start, start + n) of the flattened local shard."""

    name: str  # global name under which its state is recorded
    local: tuple[int, ...]
    bands: tuple[Band, ...]
    start: int
    stored: bool  # False for the copy of a tied embedding: it is read, but not written

    def pieces(self, prefix: str, tensor: Tensor) -> Iterator[ShardedTensor]:
        """Views of `tensor` (n elements, flat or in the local shape), with their places, under `prefix`/name."""
        flat = tensor.detach().view(-1)
        width = self.local[1] if len(self.local) == 2 else 1
        end = self.start + flat.numel()
        for band in self.bands:
            low, high = max(self.start, band.first * width), min(end, (band.first + band.rows) * width)
            at = low - self.start
            for row, column, rows, columns in rectangles(low, high, width):
                count, dims = rows * columns, len(self.local)
                offset = (band.row + row - band.first, band.column + column)[:dims]
                size = (rows, columns)[:dims]
                data = flat[at : at + count].view(size)
                at += count
                # No fragmentation: pieces of a flat range lie on no regular grid.
                yield ShardedTensor(f"{prefix}/{band.name}", data, data.dtype, size, band.shape, offset, None)


def hold(name: str, parameter: Tensor, start: int | None, shape: ModelShape) -> Held:
    """Describe what a rank holds of `parameter` (its local shard), from element `start` on (None: all of it)."""
    local = tuple(parameter.shape)
    bands = tuple(bands_of(name, local, split_of(parameter), shape))
    copy = name == OUTPUT and shape.tied
    return Held(EMBEDDING if copy else name, local, bands, start or 0, not copy)
