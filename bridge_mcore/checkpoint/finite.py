"""Weights that are not finite: found wherever they are read or written, while the values pass through anyway."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from torch import Tensor

from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.checkpoint.safetensors_file import blocks
from bridge_mcore.errors import CheckpointError

_BYTES = 16 << 20  # of a tensor that are looked at together


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is. One sum over the tensor, which NaN and infinity always spoil.

    Only where finite values overflow the sum, too, is every value looked at, which takes ten times as long.
    """
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def require_finite(name: str, tensor: Tensor, where: object) -> None:
    """Raise CheckpointError naming the tensor, how many of its values are not finite, and `where` it was found."""
    if not is_finite(tensor):
        raise CheckpointError(_message(name, int((~tensor.isfinite()).sum()), tensor.numel(), where))


def not_finite(source: TensorSource, names: Iterable[str]) -> CheckpointError:
    """What to raise where a part of some tensors was found to be not finite: they are looked at as a whole."""
    for name in names:
        shape = source.shape(name)
        width = prod(shape[1:]) * source.dtype(name).itemsize
        count = sum(int((~source.block(name, rows).isfinite()).sum()) for rows in blocks(shape[0], width, _BYTES))
        if count:
            return CheckpointError(_message(name, count, prod(shape), source.directory))
    return CheckpointError(f"{source.directory}: {', '.join(names)} change while they are read")


def _message(name: str, count: int, total: int, where: object) -> str:
    values = "value that is" if count == 1 else "values that are"
    return f"{where}: {name} holds {count:,} {values} not finite (NaN or infinity), of {total:,}; they are not used"
