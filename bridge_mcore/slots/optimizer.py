"""One Megatron optimizer over θ and w whose groups are clipped and stepped apart.

Two groups of parameters, two learning rates (α for the base, β for the adapters), one set of fp32 masters: whole, or
with DistributedOptimizer sharded over the data-parallel ranks. θ̂ is stepped through the base group while its values
and moments are swapped in (slots.slot).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared
from torch import Tensor

from bridge_mcore.config import schema
from bridge_mcore.errors import TrainingError

BASE, ADAPTER = "base", "adapter"
#: Elements that one call of the inner optimizer steps at most: what the update was is known from a copy of so many.
_STEP_ELEMENTS = 2**26
_SQUARE_ELEMENTS = 2**24  # squared at once for a norm


@dataclass(frozen=True)
class Stepped:
    """What one optimizer step of a group did. L2 norms over all ranks; the gradient's is taken before clipping."""

    grad_norm: float
    update_norm: float


@dataclass(frozen=True, eq=False)
class Master:
    """The fp32 value that the optimizer steps, of one parameter on this rank.

    Attributes:
        value: shaped like `live`, or with DistributedOptimizer the 1-D part of it that this rank keeps. In an fp32
            model it shares the live parameter's memory.
        live: the parameter that the model computes with.
        start: offset of `value` in the flattened `live`; None when it is whole.
        part: index of the Megatron optimizer that steps it (experts have one of their own).
    """

    value: Tensor
    live: torch.nn.Parameter
    start: int | None
    part: int

    def of(self, full: Tensor) -> Tensor:
        """The part of `full` (shaped like `live`) that belongs to `value`; a view."""
        return full if self.start is None else full.reshape(-1)[self.start : self.start + self.value.numel()]


def gradients_of(masters: Iterable[Master]) -> list[Tensor]:
    """The masters' gradients, which `gather_gradients` has laid there."""
    gradients = []
    for m in masters:
        assert m.value.grad is not None
        gradients.append(m.value.grad)
    return gradients


class GroupedOptimizer:
    """AdamW (decoupled decay) or SGD over the base and adapter groups of DDP-wrapped model chunks."""

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], options: schema.Optimizer, dtype: torch.dtype
    ) -> None:
        self.chunks = list(chunks)
        self.options = options
        self.in_place = dtype == torch.float32  # the live weights are the masters
        self.sharded = bool(chunks[0].ddp_config.use_distributed_optimizer)
        self.overlapped = self.sharded and bool(chunks[0].ddp_config.overlap_param_gather)
        no_decay = ParamPredicate("one-dimensional", lambda p: p.dim() < 2)
        overrides: dict[ParamKey, dict[str, Any]] = {ParamKey(attr="is_adapter"): {"bridge_group": ADAPTER}}
        if not options.weight_decay_1d:
            overrides[ParamKey(predicate=no_decay)] = {"wd_mult": 0.0}
        config = OptimizerConfig(
            # SGD is stepped here: Megatron's DistributedOptimizer takes only Adam, whose state is never made then.
            optimizer="adam",
            lr=options.alpha,
            min_lr=0.0,
            weight_decay=options.weight_decay,
            adam_beta1=options.betas[0],
            adam_beta2=options.betas[1],
            adam_eps=options.eps,
            clip_grad=0.0,  # clipped here, per group
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=self.sharded,
        )
        chained = get_megatron_optimizer(config, self.chunks, config_overrides=overrides)
        self.parts: list[MegatronOptimizer] = list(getattr(chained, "chained_optimizers", [chained]))
        for part in self.parts:
            for group in part.param_groups:
                group["weight_decay"] = options.weight_decay * group["wd_mult"]
        self.pairs: dict[str, list[Master]] = {BASE: [], ADAPTER: []}  # in the optimizer's order
        for index, part in enumerate(self.parts):
            located = _locate(part, self.chunks)
            for group in part.param_groups:
                name = group.get("bridge_group", BASE)
                self.pairs[name] += [Master(p, *located[p], index) for p in group["params"]]
        if self.overlapped:  # else the first forward would gather, and generation may give only some ranks one
            self.sync_live()

    def set_rates(self, alpha: float, beta: float) -> None:
        """Learning rates of the next steps: α of θ and θ̂, β of w."""
        for group in self.groups((BASE, ADAPTER)):
            group["lr"] = beta if group.get("bridge_group", BASE) == ADAPTER else alpha

    def groups(self, names: Iterable[str]) -> Iterator[dict]:
        """The inner optimizers' parameter groups of these names."""
        for part in self.parts:
            yield from (g for g in part.param_groups if g.get("bridge_group", BASE) in names)

    def state(self, master: Master) -> dict:
        """The optimizer state (moments, step) of one master; empty before its first step."""
        return self.parts[master.part].optimizer.state[master.value]

    def gather_gradients(self) -> None:
        """Lay the reduced gradients of the DDP buffers into the masters' ``.grad`` (no copy in fp32)."""
        for part in self.parts:
            if not part.is_stub_optimizer:
                part.prepare_grads()

    def _norm(self, squares: Iterable[tuple[int, Tensor]]) -> float:
        """√ of the sum over all ranks of (part index, sum of squares) entries."""
        sums = [torch.zeros((), dtype=torch.float64, device=self._device()) for _ in self.parts]
        for part, square in squares:
            sums[part] += square.double()
        for part, total in zip(self.parts, sums, strict=True):
            # Each part has its own group: model-parallel ranks, or with sharded masters all that hold a shard.
            dist.all_reduce(total, group=part.get_grad_stats_parallel_group())
        return math.sqrt(float(torch.stack(sums).sum())) if sums else 0.0

    def _device(self) -> torch.device:
        return next(iter(self.chunks[0].module.parameters())).device

    def check_finite(self, name: str) -> float:
        """L2 norm of a group's gradient over all ranks. TrainingError if it holds NaN or infinity."""
        norm = self._norm(_squares(self.pairs[name], gradients_of(self.pairs[name])))
        if not math.isfinite(norm):
            raise TrainingError(f"the gradient of the {name} group is not finite (norm {norm})")
        return norm

    def _clip_factor(self, norm: float) -> float:
        """Factor that brings a gradient of this norm within `gradient_clip`."""
        limit = self.options.gradient_clip
        return 1.0 if limit is None or norm <= limit else limit / (norm + 1e-6)

    @torch.no_grad()
    def step(self, name: str, norm: float | None = None) -> Stepped:
        """Clip and step one group's masters with the gradients in them; `publish` makes it live. Returns norms.

        norm: what `check_finite` gave for these gradients, if it was asked already.
        """
        if self.options.name == "sgd":
            return self.ascend(name, norm)
        self.settle()  # in fp32 a gather that is under way would put the old values back
        norm = self.check_finite(name) if norm is None else norm
        factor = self._clip_factor(norm)
        if factor != 1.0 and self.pairs[name]:
            torch._foreach_mul_(gradients_of(self.pairs[name]), factor)
        squares: list[tuple[int, Tensor]] = []
        by_value = {m.value: m for m in self.pairs[name]}
        for part in self.parts:
            if part.is_stub_optimizer:
                continue
            every = part.optimizer.param_groups
            try:
                for group in (g for g in every if g.get("bridge_group", BASE) == name):
                    stepped = group
                    for few in _portions(group["params"]):
                        # Few masters at a time, because the copy tells how far they went; in a group of their own,
                        # because apex and TE count a group's steps, and each portion is to start from the same count.
                        before = [p.detach().clone() for p in few]
                        stepped = {**group, "params": few}
                        part.optimizer.param_groups = [stepped]
                        part.optimizer.step()
                        torch._foreach_sub_(before, few)
                        squares += _squares([by_value[p] for p in few], before)
                    group.update({k: stepped[k] for k in ("step",) if k in stepped})
            finally:
                part.optimizer.param_groups = every
        return Stepped(norm, self._norm(squares))

    @torch.no_grad()
    def ascend(self, name: str, norm: float | None = None) -> Stepped:
        """Plain gradient step (Eq. 10), which needs no moments: SGD, and `auxiliary.optimizer: sgd`."""
        self.settle()
        norm = self.check_finite(name) if norm is None else norm
        factor = self._clip_factor(norm)
        squares: list[tuple[int, Tensor]] = []
        for group in self.groups((name,)):
            mine = {id(p) for p in group["params"]}
            for m in (m for m in self.pairs[name] if id(m.value) in mine):
                change = gradients_of([m])[0] * (-group["lr"] * factor)
                if group["weight_decay"] and self.options.name == "sgd":
                    change -= group["lr"] * group["weight_decay"] * m.value
                m.value.add_(change)
                squares += _squares([m], [change])
        return Stepped(norm, self._norm(squares))

    def publish(self, gather: bool = True) -> None:
        """Make the live weights of all data-parallel ranks those of the masters; without `gather`, only own shards."""
        self.settle()
        for part in self.parts:
            if hasattr(part, "_copy_main_params_to_model_params") and not part.is_stub_optimizer:
                part._copy_main_params_to_model_params()
        if gather:
            self.sync_live()

    def sync_live(self) -> None:
        """Gather the live weights from the shards that their owners hold; overlapped, the first use waits for them."""
        if self.sharded:
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=not self.overlapped)

    def settle(self) -> None:
        """Wait for gathers that are under way: before live weights are written, or read without a forward pass."""
        if not self.overlapped:
            return
        for chunk in self.chunks:
            for bucket in (*chunk.bucket_groups, *chunk.expert_parallel_bucket_groups):
                if bucket.param_gather_handle is not None:
                    bucket.finish_param_sync(skip_next_bucket_dispatch=True)

    def release_gradients(self) -> None:
        """Zero the DDP gradient buffers before a pass.

        A ``.grad`` left on a parameter would be added to its buffer a second time by the next backward.
        """
        for masters in self.pairs.values():
            for m in masters:
                m.value.grad = m.live.grad = None
        for chunk in self.chunks:
            chunk.zero_grad_buffer()


def _locate(
    part: MegatronOptimizer, chunks: Sequence[DistributedDataParallel]
) -> dict[Tensor, tuple[torch.nn.Parameter, int | None]]:
    """Master -> (live parameter, offset within it) of one Megatron optimizer."""
    if isinstance(part, DistributedOptimizer):
        if part.is_stub_optimizer:
            return {}
        located = {}
        for lives, shards in (
            *zip(part.model_float16_groups, part.shard_fp32_from_float16_groups, strict=True),
            *zip(part.model_fp32_groups, part.shard_fp32_groups, strict=True),
        ):
            for live, shard in zip(lives, shards, strict=True):
                located[shard] = (live, part._get_model_param_range_map(live)["param"].start)
        return located
    out: dict[Tensor, tuple[torch.nn.Parameter, int | None]] = {}
    for chunk in chunks:
        for p in chunk.module.parameters():
            main = getattr(p, "main_param", None)
            out[p if main is None else main] = (p, None)
    return out


def _is_counted(live: torch.nn.Parameter) -> bool:
    """Whether this rank's copy counts in a norm: tied copies and tensor-parallel replicas count once."""
    expert = not getattr(live, "allreduce", True)
    return param_is_not_shared(live) and (expert or param_is_not_tensor_parallel_duplicate(live))


def _squares(masters: Sequence[Master], tensors: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    """(part index, sum of squares) of the tensors that count; one entry a part."""
    by_part: dict[int, list[Tensor]] = {}
    for m, tensor in zip(masters, tensors, strict=True):
        if _is_counted(m.live):
            # `sum` adds pairwise; torch's norms on a CPU add one by one, which loses a percent over 10⁸ elements.
            by_part.setdefault(m.part, []).extend(t.square().sum() for t in tensor.reshape(-1).split(_SQUARE_ELEMENTS))
    return [(part, torch.stack(squares).double().sum()) for part, squares in by_part.items()]


def _portions(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive runs of parameters of at most _STEP_ELEMENTS elements (or one parameter)."""
    few: list[Tensor] = []
    size = 0
    for p in params:
        if few and size + p.numel() > _STEP_ELEMENTS:
            yield few
            few, size = [], 0
        few.append(p)
        size += p.numel()
    if few:
        yield few
