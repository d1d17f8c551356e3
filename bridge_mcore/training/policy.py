"""Everything that is trained: the live model, its optimizer and the slots, built from an HF checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from torch import Tensor

from bridge_mcore.checkpoint import hf, peft
from bridge_mcore.config import schema
from bridge_mcore.errors import CheckpointError
from bridge_mcore.methods.base import THETA, THETA_HAT
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.gpt import PolicyModel, build_model
from bridge_mcore.model.lora import LoRAShape, adapters_disabled, attach_lora
from bridge_mcore.platform.device import Platform
from bridge_mcore.slots.optimizer import ADAPTER, BASE, GroupedOptimizer
from bridge_mcore.slots.slot import Slot

REFERENCE = "reference"


def _finalize(model: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Megatron's gradient reduction, without its division by tokens: the weights on the tokens have done that."""
    finalize_model_grads(model, None, **kwargs)


@dataclass
class Policy:
    """[θ, w], θ̂ and the reference on this rank."""

    platform: Platform
    family: Family
    shape: ModelShape
    source: Path  # HF directory that config and tokenizer come from
    lora: LoRAShape | None
    model: DistributedDataParallel
    optimizer: GroupedOptimizer
    slots: dict[str, Slot]

    @property
    def module(self) -> PolicyModel:
        return self.model.module

    @contextmanager
    def live(self, slot: str) -> Iterator[None]:
        """Inside, the model computes with this slot's base weights; the reference goes without w."""
        with self.slots[slot].swapped() if slot != THETA else nullcontext():
            with adapters_disabled(self.module) if slot == REFERENCE else nullcontext():
                yield

    def masters(self, slot: str = THETA) -> dict[str, Tensor]:
        """fp32 values of a slot's base parameters (this rank's shards), by global Megatron name."""
        pairs = self.optimizer.pairs[BASE]
        values = [m for m, _ in pairs] if slot == THETA else self.slots[slot].values
        by_live = {id(live): value for (_, live), value in zip(pairs, values, strict=True)}
        return {name: by_live[id(p)] for name, p in hf.base_parameters(self.module).items()}

    def adapter_masters(self) -> dict[str, Tensor]:
        """fp32 values of w (this rank's shards), by global Megatron name."""
        by_live = {id(live): master for master, live in self.optimizer.pairs[ADAPTER]}
        parameters = hf.local_parameters(self.module).items()
        return {name: by_live[id(p)] for name, p in parameters if id(p) in by_live}

    def load_slot(self, slot: str, directory: Path) -> None:
        """Fill a slot's values from an HF checkpoint of the same family and shape."""
        family, shape = find_family(directory)
        if (family, shape) != (self.family, self.shape):
            raise CheckpointError(f"{directory} has another architecture or shape than {self.source}")
        masters = self.masters(slot)
        with torch.no_grad():
            for name, tensor in hf.read_theta(self.module, directory, family, shape):
                masters[name].copy_(tensor)

    def export_theta(self, target: Path, slot: str = THETA, dtype: torch.dtype | None = None) -> None:
        """Write a slot's base weights, without w, as an HF checkpoint. Collective."""
        tensors = hf.theta_tensors(self.module, self.masters(slot), self.family, self.shape)
        hf.write_hf(target, self.source, tensors, dtype)

    def export_merged(self, target: Path, dtype: torch.dtype | None = None) -> None:
        """Write θ + scale · B A as an HF checkpoint: the model that rollouts came from. Collective."""
        tensors = hf.theta_tensors(self.module, self.masters(), self.family, self.shape)
        if self.lora is not None:
            tensors = peft.merged_tensors(tensors, self.adapter_tensors(), self.lora)
        hf.write_hf(target, self.source, tensors, dtype)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """w in PEFT's names (this pipeline stage's layers), full tensors on CPU. Collective over tensor ranks."""
        assert self.lora is not None
        return peft.adapter_tensors(self.module, self.adapter_masters(), self.lora, self.shape)

    def export_adapter(self, directory: Path, base: str) -> None:
        """Write w as a PEFT adapter of all pipeline stages' layers; `base` is the base model it names. Collective."""
        assert self.lora is not None
        parts: list[dict[str, Tensor]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, self.adapter_tensors())
        if dist.get_rank() == 0:
            peft.write_adapter(directory, {k: v for part in parts for k, v in part.items()}, self.lora, base)


def build_policy(
    config: schema.Config,
    platform: Platform,
    source: Path,
    *,
    adapter: bool,
    auxiliary: bool,
    reference: bool,
    adapter_path: Path | None = None,
) -> Policy:
    """Build the model for this rank's place in the layout and fill it from the HF checkpoint `source`.

    Args:
        adapter: train w beside θ (from `adapter_path`, or with B = 0).
        auxiliary: keep θ̂, starting equal to θ.
        reference: keep the starting θ as reference policy.
    Raises:
        CheckpointError: for a checkpoint that is corrupt or cannot be expressed.
    """
    family, shape = find_family(source)
    lora = None
    if adapter and adapter_path is not None:
        lora = peft.read_adapter_config(adapter_path)
    elif adapter:
        from bridge_mcore.model.lora import expand_targets

        lora = LoRAShape(config.adapter.rank, config.adapter.alpha, expand_targets(config.adapter.targets))
    dtype = getattr(torch, config.model.dtype)
    module = build_model(
        shape,
        config.parallel,
        dtype,
        platform.device,
        logprob_chunk=config.model.logprob_chunk_tokens,
        recompute=config.model.recompute,
    )
    hf.load_theta(module, source, family, shape)
    if lora is not None:
        attach_lora(module, lora, shape, config.run.seed)
        if adapter_path is not None:
            peft.load_adapter(module, adapter_path, lora, shape)
        module.to(platform.device)
    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    model = DistributedDataParallel(module.config, ddp_config, module)
    model.broadcast_params()
    module.config.finalize_model_grads_func = partial(_finalize)
    optimizer = GroupedOptimizer(model, config.optimizer, dtype)
    slots = {}
    if auxiliary:
        slots[THETA_HAT] = Slot(optimizer, moments=config.auxiliary.optimizer == "same")
    if reference:
        slots[REFERENCE] = Slot(optimizer, moments=False)
    return Policy(platform, family, shape, source, lora, model, optimizer, slots)
