"""Any rows and columns of a Megatron parameter, read from HF tensors by slice."""

from __future__ import annotations

import torch
from torch import Tensor

from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.model.families.mapping import Plain
from bridge_mcore.model.families.shape import ModelShape


def parameter_rows(
    source: TensorSource,
    mapping: Plain,
    shape: ModelShape,
    rows: tuple[int, int],
    columns: tuple[int, int] | None = None,
) -> Tensor:
    """Rows [first, end) of the whole, padded parameter; rows beyond the HF tensors are zeros. Not to be written to.

    Nothing else is read. Where the rows are consecutive in one HF tensor, the result is a window on its file.
    """
    low, high = rows
    out: Tensor | None = None
    at = 0
    for s in mapping.segments(shape, sum(source.shape(name)[0] for name in mapping.hf)):
        top, bottom = max(low, at), min(high, at + s.rows)
        if top < bottom:
            part = source.block(mapping.hf[s.tensor], (s.row + top - at, s.row + bottom - at), columns)
            if (top, bottom) == rows:
                return part
            if out is None:  # zeros beyond the HF tensors; one window at a time, for each takes a file descriptor
                out = torch.zeros(high - low, *part.shape[1:], dtype=part.dtype)
            out[top - low : bottom - low] = part
        at += s.rows
    if out is None:  # nothing but padding
        name = mapping.hf[0]
        width = source.shape(name)[1:] if columns is None else (columns[1] - columns[0],)
        out = torch.zeros(high - low, *width, dtype=source.dtype(name))
    return out


def parameter_shard(
    source: TensorSource, mapping: Plain, shape: ModelShape, dim: int | None, rank: int, size: int
) -> Tensor:
    """What tensor rank `rank` of `size` holds of a parameter that is split along `dim` (None: all of it)."""
    total = sum(source.shape(name)[0] for name in mapping.hf)
    if dim is None:
        return parameter_rows(source, mapping, shape, (0, total))
    if dim == 0:
        ranges = mapping.shard_rows(mapping.padded(total, size), rank, size)
        parts = [parameter_rows(source, mapping, shape, part) for part in ranges]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    width = source.shape(mapping.hf[0])[1] // size
    return parameter_rows(source, mapping, shape, (0, total), (rank * width, (rank + 1) * width))
