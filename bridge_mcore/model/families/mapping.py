"""How a Megatron parameter is made of HF tensors: its rows are theirs, in another order.

A mapping says so once, as row segments. Whole tensors (import, export, weight sync), one rank's shard and a few rows at
a time (conversion in bounded memory) all follow from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

if TYPE_CHECKING:
    from bridge_mcore.model.families.base import ModelShape


class Segment(NamedTuple):
    """Consecutive rows of one of a mapping's HF tensors."""

    tensor: int
    row: int
    rows: int


@dataclass(frozen=True)
class Plain:
    """One HF tensor is one Megatron parameter."""

    mcore: str
    hf: tuple[str, ...]
    #: Parts one under another, each of which tensor parallelism splits for itself.
    stacks: ClassVar[int] = 1

    def segments(self, shape: ModelShape, rows: int) -> list[Segment]:
        """All `rows` of the whole parameter (padding left out), in Megatron's order."""
        return [Segment(0, 0, rows)]

    def padded(self, rows: int, size: int) -> int:
        """Rows of the whole parameter in Megatron over `size` tensor ranks."""
        return rows

    def merge(self, tensors: list[torch.Tensor], shape: ModelShape) -> torch.Tensor:
        """The whole parameter (without padding) of its whole HF tensors."""
        segments = self.segments(shape, sum(t.shape[0] for t in tensors))
        parts = [tensors[s.tensor][s.row : s.row + s.rows] for s in segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def split(self, tensor: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
        """The HF tensors of the whole parameter; views of it where that is possible."""
        parts: list[list[torch.Tensor]] = [[] for _ in self.hf]
        at = 0
        for s in self.segments(shape, tensor.shape[0]):  # each tensor's segments come in its own order
            parts[s.tensor].append(tensor[at : at + s.rows])
            at += s.rows
        return [p[0] if len(p) == 1 else torch.cat(p) for p in parts]

    def shard_rows(self, rows: int, rank: int, size: int) -> list[tuple[int, int]]:
        """Row ranges of the whole, padded parameter that tensor rank `rank` of `size` holds, in its order."""
        stack, part = rows // self.stacks, rows // self.stacks // size
        return [(i * stack + rank * part, i * stack + (rank + 1) * part) for i in range(self.stacks)]

    def shard(self, full: torch.Tensor, dim: int, parts: int) -> list[torch.Tensor]:
        """The tensor ranks' shards of a whole parameter, split along `dim`; padded with zeros where Megatron pads."""
        if dim != 0:
            return list(full.chunk(parts, dim))
        missing = self.padded(full.shape[0], parts) - full.shape[0]
        if missing:
            full = torch.cat([full, full.new_zeros(missing, *full.shape[1:])])
        held = [[full[a:b] for a, b in self.shard_rows(full.shape[0], rank, parts)] for rank in range(parts)]
        return [pieces[0] if len(pieces) == 1 else torch.cat(pieces) for pieces in held]

    def unshard(self, shards: list[torch.Tensor], dim: int) -> torch.Tensor:
        """The whole (padded) parameter of its shards."""
        if dim != 0 or self.stacks == 1:
            return torch.cat(shards, dim)
        return torch.cat(
            [stack for stacked in zip(*(s.chunk(self.stacks) for s in shards), strict=True) for stack in stacked]
        )


@dataclass(frozen=True)
class Vocabulary(Plain):
    """Embedding and output rows: padded with zeros in Megatron so that they divide over tensor ranks."""

    def segments(self, shape: ModelShape, rows: int) -> list[Segment]:
        return [Segment(0, 0, min(rows, shape.vocab_size))]

    def padded(self, rows: int, size: int) -> int:
        return rows + -rows % size


@dataclass(frozen=True)
class QKV(Plain):
    """q, k, v projections, interleaved per key-value group: [q…, k, v] for each group."""

    def segments(self, shape: ModelShape, rows: int) -> list[Segment]:
        d, q = shape.head_dim, shape.heads // shape.kv_heads * shape.head_dim
        groups = range(shape.kv_heads)
        return [s for g in groups for s in (Segment(0, g * q, q), Segment(1, g * d, d), Segment(2, g * d, d))]


@dataclass(frozen=True)
class GateUp(Plain):
    """gate and up projections, stacked; a tensor rank holds its part of each."""

    stacks: ClassVar[int] = 2

    def segments(self, shape: ModelShape, rows: int) -> list[Segment]:
        return [Segment(0, 0, rows // 2), Segment(1, 0, rows // 2)]
