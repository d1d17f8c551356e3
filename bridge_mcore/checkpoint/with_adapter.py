"""A base model with LoRA weights merged into it, as a source of tensors: θ + scale · B A, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from bridge_mcore.checkpoint.peft import PREFIX
from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.model.lora import LoRAShape

#: Rows of a product that are computed together, counted from the tensor's first row: the bits of a matrix product
#: depend on how it is cut, and must not depend on which rows someone asks for.
_ROWS = 256


class WithAdapter:
    """The tensors of `base`; those that the adapter changes are summed in fp32 and rounded once, to their own dtype.

    Args:
        adapter: gives A [r, in] and B [out, r] of each projection under PEFT's names.
        names: the tensors that it has.
    """

    def __init__(
        self, base: TensorSource, adapter: Callable[[str], Tensor], names: Collection[str], lora: LoRAShape
    ) -> None:
        self.base, self.lora = base, lora
        self.directory: Path = base.directory
        stems = {name: PREFIX + name.removesuffix(".weight") for name in base.names() if name.endswith(".weight")}
        self._stems = {name: stem for name, stem in stems.items() if f"{stem}.lora_A.weight" in names}
        self._read = adapter
        # A tensor is asked for block by block, by as many threads as write files.
        self._pair = lru_cache(maxsize=16)(self._load)

    def _load(self, stem: str) -> tuple[Tensor, Tensor]:
        a, b = (self._read(f"{stem}.lora_{letter}.weight").float().clone() for letter in "AB")
        return a, b

    def names(self) -> set[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.base.dtype(name)

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """See `TensorSource`."""
        part = self.base.block(name, rows, columns)
        if name not in self._stems:
            return part
        a, b = self._pair(self._stems[name])
        first, end = rows[0] - rows[0] % _ROWS, rows[1] + -rows[1] % _ROWS
        products = []
        for low in range(first, end, _ROWS):
            some = b[low : low + _ROWS]
            full = torch.zeros(_ROWS, b.shape[1])
            full[: some.shape[0]] = some
            products.append(full @ a)
        delta = torch.cat(products)[rows[0] - first : rows[1] - first]
        if columns is not None:
            delta = delta[:, columns[0] : columns[1]]
        return (part.float() + self.lora.scale * delta).to(part.dtype)
