"""The live weights under HF names, one parameter at a time: what acts after a sync.

The values are those that the trainer's forward pass uses (the live ones, in their dtype), not the fp32 masters. Merged,
a weight is θ + (α/r) B A: the product is added to each rank's shard, in fp32, in memory of its own, before the shards
are gathered. So neither the live weights nor the adapters change, and no process ever holds the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bridge_mcore.checkpoint.hf import base_parameters, theta_groups
from bridge_mcore.config.schema import LORA_HOSTS
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.lora import HOST_PATHS, LoRA


class LiveShards(Mapping[str, Tensor]):
    """This rank's live base weights by global Megatron name, with w added if `merged`."""

    def __init__(self, chunks: Sequence[Any], merged: bool) -> None:
        self.live = base_parameters(chunks)
        self.adapters = dict(_adapters(chunks)) if merged else {}

    def __getitem__(self, name: str) -> Tensor:
        value = self.live[name].detach()
        adapter = self.adapters.get(name)
        if adapter is None:
            return value
        return (value.float() + adapter.weight_delta()).to(value.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.live)

    def __len__(self) -> int:
        return len(self.live)


def _adapters(chunks: Sequence[Any]) -> Iterator[tuple[str, LoRA]]:
    """(global name of the host's weight, adapters of it)."""
    for layer in (layer for chunk in chunks for layer in chunk.decoder.layers):
        for host in LORA_HOSTS:
            path = HOST_PATHS[host]
            module = layer
            for part in path.split("."):
                module = getattr(module, part, None)
            adapter = getattr(module, "lora", None)
            if isinstance(adapter, LoRA):
                yield f"decoder.layers.{layer.layer_number - 1}.{path}.weight", adapter


@torch.no_grad()
def live_groups(
    chunks: Sequence[Any], family: Family, shape: ModelShape, merged: bool, dtype: torch.dtype
) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield (HF name, full tensor in `dtype`) pairs of each parameter of this pipeline stage, on its device.

    Collective over the stage's tensor- and expert-parallel ranks. What HF splits (q, k, v; gate, up) comes together.
    """
    live = LiveShards(chunks, merged)
    for pairs in theta_groups(chunks, live, family, shape, dtype=chunks[0].config.params_dtype):
        yield [(name, tensor.to(dtype)) for name, tensor in pairs]
