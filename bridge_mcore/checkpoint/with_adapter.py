"""A base model with LoRA weights merged into it, as a source of tensors: θ + scale · B A, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bridge_mcore.checkpoint.peft import PREFIX
from bridge_mcore.checkpoint.safetensors_dir import TensorSource
from bridge_mcore.model.lora import LoRAShape


class WithAdapter:
    """The tensors of `base`; those that the adapter changes are summed in fp32 and rounded once, to their own dtype.

    Args:
        adapter: PEFT name -> tensor, A [r, in] and B [out, r] of each projection.
    """

    def __init__(self, base: TensorSource, adapter: Mapping[str, Tensor], lora: LoRAShape) -> None:
        self.base, self.lora = base, lora
        self.directory: Path = base.directory
        self._parts = {
            name: tuple(
                adapter[f"{PREFIX}{name.removesuffix('.weight')}.lora_{letter}.weight"].float() for letter in "AB"
            )
            for name in base.names()
            if f"{PREFIX}{name.removesuffix('.weight')}.lora_A.weight" in adapter and name.endswith(".weight")
        }

    def names(self) -> set[str]:
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.base.dtype(name)

    def block(self, name: str, rows: tuple[int, int], columns: tuple[int, int] | None = None) -> Tensor:
        """See `TensorSource`."""
        part = self.base.block(name, rows, columns)
        if name not in self._parts:
            return part
        a, b = self._parts[name]
        a = a if columns is None else a[:, columns[0] : columns[1]]
        return (part.float() + self.lora.scale * (b[rows[0] : rows[1]] @ a)).to(part.dtype)
