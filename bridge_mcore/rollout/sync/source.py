"""Where a sync takes the weights from: the live policy, seen from this rank."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.checkpoint.hf import expected_tensors
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.lora import LoRAShape
from bridge_mcore.rollout.sync.weights import live_groups


@dataclass
class Source:
    """The live policy.

    Attributes:
        chunks: this rank's models.
        directory: HF checkpoint that config and tokenizer come from.
        dtype: in which weights are sent: the engine's.
        settle: wait until the live weights can be read.
        changes: something that differs when θ has changed.
        write_adapter: write w as a PEFT adapter (collective).
    """

    chunks: Sequence[Any]
    family: Family
    shape: ModelShape
    lora: LoRAShape | None
    directory: Path
    device: torch.device
    dtype: torch.dtype
    settle: Callable[[], None]
    changes: Callable[[], object]
    write_adapter: Callable[[Path], None]

    def groups(self, merged: bool) -> Iterator[list[tuple[str, Tensor]]]:
        """This stage's weights; see `live_groups`. Collective over the stage."""
        return live_groups(self.chunks, self.family, self.shape, merged, self.dtype)

    def size(self, alignment: int) -> int:
        """Bytes of a buffer that all weights fit into, each at a multiple of `alignment`."""
        shapes = expected_tensors(self.family, self.shape).values()
        return sum(math.prod(shape) * self.dtype.itemsize + alignment for shape in shapes)

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove what was written for a sync, when all servers have read it."""
        if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
            shutil.rmtree(directory, ignore_errors=True)
