"""One Megatron optimizer over θ and w whose groups are clipped and stepped apart.

Two groups of parameters, two learning rates (α for the base, β for the adapters), one set of fp32 masters. θ̂ is stepped
through the base group while its values and moments are swapped in (slots.slot).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import get_grad_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor

from bridge_mcore.config import schema
from bridge_mcore.errors import TrainingError

BASE, ADAPTER = "base", "adapter"


@dataclass(frozen=True)
class Stepped:
    """What one optimizer step of a group did. L2 norms over all ranks; the gradient's is taken before clipping."""

    grad_norm: float
    update_norm: float


def gradients_of(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The masters' gradients, which `gather_gradients` has laid there."""
    gradients = []
    for master, _ in pairs:
        assert master.grad is not None
        gradients.append(master.grad)
    return gradients


class GroupedOptimizer:
    """AdamW (decoupled decay) or SGD over the base and adapter groups of a DDP-wrapped model."""

    def __init__(self, model: DistributedDataParallel, options: schema.Optimizer, dtype: torch.dtype) -> None:
        self.model = model
        self.options = options
        no_decay = ParamPredicate("one-dimensional", lambda p: p.dim() < 2)
        overrides: dict[ParamKey, dict[str, Any]] = {ParamKey(attr="is_adapter"): {"bridge_group": ADAPTER}}
        if not options.weight_decay_1d:
            overrides[ParamKey(predicate=no_decay)] = {"wd_mult": 0.0}
        config = OptimizerConfig(
            optimizer="adam" if options.name == "adamw" else "sgd",
            lr=options.alpha,
            min_lr=0.0,
            weight_decay=options.weight_decay,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            adam_eps=options.eps,
            sgd_momentum=0.0,
            clip_grad=0.0,  # clipped here, per group
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
        )
        chained = get_megatron_optimizer(config, [model], config_overrides=overrides)
        self.parts: list[MegatronOptimizer] = list(getattr(chained, "chained_optimizers", [chained]))
        for part in self.parts:
            for group in part.param_groups:
                group["weight_decay"] = options.weight_decay * group["wd_mult"]
        #: (master, live parameter) pairs by group; in fp32 the master is the live parameter
        self.pairs: dict[str, list[tuple[Tensor, Tensor]]] = {BASE: [], ADAPTER: []}
        live_of = {}
        for p in model.module.parameters():
            live_of[getattr(p, "main_param", None) if hasattr(p, "main_param") else p] = p
        for part in self.parts:
            for group in part.param_groups:
                name = group.get("bridge_group", BASE)
                self.pairs[name] += [(master, live_of[master]) for master in group["params"]]

    def set_rates(self, alpha: float, beta: float) -> None:
        """Learning rates of the next steps: α of θ and θ̂, β of w."""
        for group in self.groups((BASE, ADAPTER)):
            group["lr"] = beta if group.get("bridge_group", BASE) == ADAPTER else alpha

    def groups(self, names: Iterable[str]) -> Iterator[dict]:
        for part in self.parts:
            yield from (g for g in part.param_groups if g.get("bridge_group", BASE) in names)

    def state(self, master: Tensor) -> dict:
        """The optimizer state (moments, step) of one master; empty before its first step."""
        return next(part.optimizer.state for part in self.parts if self._owns(part, master))[master]

    def _owns(self, part: MegatronOptimizer, master: Tensor) -> bool:
        return any(master is p for g in part.param_groups for p in g["params"]) if len(self.parts) > 1 else True

    def gather_gradients(self) -> None:
        """Lay the reduced gradients of the DDP buffers into the masters' ``.grad`` (no copy in fp32)."""
        for part in self.parts:
            part.prepare_grads()

    def _norm(self, tensors: list[Tensor], pairs: list[tuple[Tensor, Tensor]]) -> float:
        """L2 norm over all model-parallel ranks, counting replicated and shared parameters once."""
        counted = [
            t
            for t, (_, live) in zip(tensors, pairs, strict=True)
            if param_is_not_shared(live) and param_is_not_tensor_parallel_duplicate(live)
        ]
        norm = get_grad_norm_fp32(counted, grad_stats_parallel_group=self.parts[0].get_grad_stats_parallel_group())
        return float(norm)

    def check_finite(self, name: str) -> float:
        """L2 norm of a group's gradient over all ranks. TrainingError if it holds NaN or infinity."""
        norm = self._norm(gradients_of(self.pairs[name]), self.pairs[name])
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient of the {name} group is not finite (norm {norm})")
        return norm

    def _clip_factor(self, norm: float) -> float:
        """Factor that brings a gradient of this norm within `gradient_clip`."""
        limit = self.options.gradient_clip
        return 1.0 if limit is None or norm <= limit else limit / (norm + 1e-6)

    @torch.no_grad()
    def step(self, name: str, norm: float | None = None) -> Stepped:
        """Clip and step one group with the gradients in its masters; the live weights follow. Returns norms.

        norm: what `check_finite` gave for these gradients, if it was asked already.
        """
        norm = self.check_finite(name) if norm is None else norm
        pairs = self.pairs[name]
        gradients = gradients_of(pairs)
        factor = self._clip_factor(norm)
        if factor != 1.0:
            torch._foreach_mul_(gradients, factor)
        before = [master.detach().clone() for master, _ in pairs]
        for part in self.parts:
            if part.is_stub_optimizer:
                continue
            every = part.optimizer.param_groups
            # torch, apex and TE optimizers all walk param_groups: the others simply are not there during this step.
            part.optimizer.param_groups = [g for g in every if g.get("bridge_group", BASE) == name]
            try:
                part.optimizer.step()
            finally:
                part.optimizer.param_groups = every
        torch._foreach_sub_(before, [master for master, _ in pairs])
        update = self._norm(before, pairs)
        self.publish()
        return Stepped(norm, update)

    def publish(self) -> None:
        """Copy the masters into the live weights (bf16); in fp32 they are the same tensors."""
        for part in self.parts:
            if hasattr(part, "_copy_main_params_to_model_params"):
                part._copy_main_params_to_model_params()

    @torch.no_grad()
    def ascend(self, rate: float, norm: float | None = None) -> Stepped:
        """Plain gradient step of the base group (Eq. 10), which needs no moments: `auxiliary.optimizer: sgd`."""
        norm = self.check_finite(BASE) if norm is None else norm
        pairs = self.pairs[BASE]
        gradients = gradients_of(pairs)
        factor = self._clip_factor(norm)
        torch._foreach_add_([master for master, _ in pairs], gradients, alpha=-rate * factor)
        self.publish()
        return Stepped(norm, rate * factor * norm)

    def release_gradients(self) -> None:
        """Zero the DDP gradient buffers before a pass.

        A ``.grad`` left on a parameter would be added to its buffer a second time by the next backward.
        """
        for pairs in self.pairs.values():
            for master, live in pairs:
                master.grad = live.grad = None
        self.model.zero_grad_buffer()
