"""Everything that is trained: the live model, its optimizer and the slots, built from an HF checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from bridge_mcore.checkpoint import hf, peft
from bridge_mcore.config import schema
from bridge_mcore.errors import CheckpointError
from bridge_mcore.methods.base import THETA, THETA_HAT, W
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import Family, ModelShape
from bridge_mcore.model.gpt import PolicyModel, build_chunks
from bridge_mcore.model.lora import LoRAShape, adapters_disabled, attach_lora, expand_targets
from bridge_mcore.platform.device import Platform
from bridge_mcore.rollout.sync.source import Source
from bridge_mcore.slots.optimizer import ADAPTER, BASE, GroupedOptimizer, Master
from bridge_mcore.slots.slot import Slot, WeightsSlot

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
    model: list[DistributedDataParallel]  # one per virtual pipeline stage of this rank
    optimizer: GroupedOptimizer
    slots: dict[str, Slot]
    #: how often each group's live values have been stepped or filled: what has been sent elsewhere may be outdated
    changes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((THETA, THETA_HAT, W), 0))

    @property
    def chunks(self) -> list[PolicyModel]:
        """This rank's models, in the order of their layers."""
        return [model.module for model in self.model]

    @property
    def config(self) -> TransformerConfig:
        """Megatron's configuration of the model."""
        return self.model[0].module.config

    @contextmanager
    def live(self, slot: str) -> Iterator[None]:
        """Inside, the model computes with this slot's base weights; the reference goes without w."""
        with self.slots[slot].swapped() if slot != THETA else nullcontext():
            with adapters_disabled(self.chunks) if slot == REFERENCE else nullcontext():
                yield

    def masters(self, slot: str = THETA) -> Mapping[str, Tensor]:
        """fp32 values of a slot's base parameters (whole tensor-parallel shards), by global Megatron name.

        With sharded masters each lookup gathers one parameter over the data-parallel ranks: every rank of the layout
        must look up the same names of its own, in the same order.
        """
        masters = self.optimizer.pairs[BASE]
        values = [m.value for m in masters] if slot == THETA else self.slots[slot].values
        return WholeMasters(hf.base_parameters(self.chunks), masters, values)

    def adapter_masters(self) -> Mapping[str, Tensor]:
        """fp32 values of w, as `masters` gives those of θ."""
        masters = self.optimizer.pairs[ADAPTER]
        named = {n: p for n, p in hf.local_parameters(self.chunks).items() if getattr(p, "is_adapter", False)}
        return WholeMasters(named, masters, [m.value for m in masters])

    def live_source(self) -> Source:
        """The live policy as a weight sync takes it, in the dtype that it has."""
        return Source(
            self.chunks, self.family, self.shape, self.lora, self.source, self.platform.device,
            self.config.params_dtype, self.optimizer.settle, lambda: (self.changes[THETA], self.changes[THETA_HAT]),
            lambda directory: self.export_adapter(directory, str(self.source)),
        )  # fmt: skip

    def load_slot(self, slot: str, directory: Path) -> None:
        """Fill a slot's values from an HF checkpoint of the same family and shape."""
        family, shape = find_family(directory)
        if (family, shape) != (self.family, self.shape):
            raise CheckpointError(f"{directory} has another architecture or shape than {self.source}")
        targets = {
            id(m.live): (m, value) for m, value in zip(self.optimizer.pairs[BASE], self.slots[slot].values, strict=True)
        }
        parameters = hf.base_parameters(self.chunks)
        with torch.no_grad():
            for name, tensor in hf.read_theta(self.chunks, directory, family, shape):
                if id(parameters[name]) in targets:
                    m, value = targets[id(parameters[name])]
                    value.copy_(m.of(tensor))

    def export_theta(self, target: Path, slot: str = THETA, dtype: torch.dtype | None = None) -> None:
        """Write a slot's base weights, without w, as an HF checkpoint. Collective."""
        tensors = hf.theta_tensors(self.chunks, self.masters(slot), self.family, self.shape)
        hf.write_hf(target, self.source, tensors, dtype)

    def export_merged(self, target: Path, dtype: torch.dtype | None = None) -> None:
        """Write θ + scale · B A as an HF checkpoint: the model that rollouts came from. Collective."""
        tensors = hf.theta_tensors(self.chunks, self.masters(), self.family, self.shape)
        if self.lora is not None:
            tensors = peft.merged_tensors(tensors, self.adapter_tensors(), self.lora)
        hf.write_hf(target, self.source, tensors, dtype)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """w in PEFT's names (this pipeline stage's layers), full tensors on CPU. Collective over tensor ranks."""
        assert self.lora is not None
        return peft.adapter_tensors(self.chunks, self.adapter_masters(), self.lora, self.shape)

    def export_adapter(self, directory: Path, base: str) -> None:
        """Write w as a PEFT adapter of all pipeline stages' layers; `base` is the base model it names. Collective."""
        assert self.lora is not None
        mine = self.adapter_tensors()
        # One rank of each pipeline stage speaks for the others, which hold the same.
        speaks = (
            mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_data_parallel_rank(with_context_parallel=True) == 0
        )
        parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(mine if speaks else {}, parts)
        if dist.get_rank() == 0:
            peft.write_adapter(directory, {k: v for part in parts or [] for k, v in part.items()}, self.lora, base)


def lora_of(config: schema.Config, shape: ModelShape, path: Path | None) -> LoRAShape:
    """w's rank, scale and projections: those of the PEFT adapter at `path`, or the configured ones."""
    if path is not None:
        return peft.read_adapter_config(path, shape)
    return LoRAShape(config.adapter.rank, config.adapter.alpha, expand_targets(config.adapter.targets, shape))


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
    hf.check_checkpoint(source, family, shape)
    lora = lora_of(config, shape, adapter_path) if adapter else None
    if lora is not None and adapter_path is not None:
        peft.open_adapter(adapter_path, lora, shape)
    dtype = getattr(torch, config.model.dtype)
    chunks = build_chunks(
        shape,
        config.parallel,
        dtype,
        platform.device,
        logprob_chunk=config.model.logprob_chunk_tokens,
        recompute=config.model.recompute,
        transformer_engine=config.model.transformer_engine == "auto" and platform.has_transformer_engine,
    )
    hf.load_theta(chunks, source, family, shape)
    if lora is not None:
        attach_lora(chunks, lora, shape, config.run.seed)
        if adapter_path is not None:
            peft.load_adapter(chunks, adapter_path, lora, shape)
        for chunk in chunks:
            chunk.to(platform.device)
    model = wrap(chunks, config.parallel)
    optimizer = GroupedOptimizer(model, config.optimizer, dtype)
    slots: dict[str, Slot] = {}
    if auxiliary:
        moments = config.auxiliary.optimizer == "same"
        slots[THETA_HAT] = Slot(optimizer, moments, platform, config.slots.theta_hat.offload)
    if reference:
        slots[REFERENCE] = WeightsSlot(optimizer, platform, config.slots.reference.offload)
    return Policy(platform, family, shape, source, lora, model, optimizer, slots)


def wrap(chunks: list[PolicyModel], parallel: schema.Parallel) -> list[DistributedDataParallel]:
    """Megatron's DDP around each chunk: gradients are accumulated and reduced in fp32."""
    config = chunks[0].config
    ddp = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=is_sharded(parallel),
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and is_sharded(parallel),
    )
    # Gradients of later chunks are complete early: only the first chunk's reduction is worth cutting into buckets.
    model = [DistributedDataParallel(config, ddp, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)]
    for wrapped in model:
        wrapped.broadcast_params()
    config.finalize_model_grads_func = partial(_finalize)
    if parallel.overlap_grad_reduce:
        no_sync = [wrapped.no_sync for wrapped in model]
        config.no_sync_func = no_sync if len(model) > 1 else no_sync[0]
    return model


def is_sharded(parallel: schema.Parallel) -> bool:
    """Whether masters, moments and slots are sharded: if asked for, and there are ranks to share them."""
    return parallel.distributed_optimizer and mpu.get_data_parallel_world_size(with_context_parallel=True) > 1


class WholeMasters(Mapping[str, Tensor]):
    """Values of masters by parameter name; sharded ones are gathered when they are looked up (collective)."""

    def __init__(self, named: dict[str, torch.nn.Parameter], masters: list[Master], values: list[Tensor]) -> None:
        self.named = named
        self.by_live = {id(m.live): (m, value) for m, value in zip(masters, values, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        live = self.named[name]
        master, value = self.by_live.get(id(live), (None, None))
        if master is not None and value is not None and master.start is None:
            return value.to(live.device)  # an offloaded slot's is in host memory
        whole = torch.zeros(live.shape, dtype=torch.float32, device=live.device)
        if master is not None and value is not None:
            master.of(whole).copy_(value)
        expert = not getattr(live, "allreduce", True)
        group = (
            mpu.get_expert_data_parallel_group() if expert else mpu.get_data_parallel_group(with_context_parallel=True)
        )
        dist.all_reduce(whole, group=group)  # the other ranks' parts are zero here
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)
