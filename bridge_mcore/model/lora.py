"""LoRA weights w on Megatron's linear layers (Hu et al., 2021), sharded as their host layers are.

Megatron fuses q, k, v and gate, up. An adapter here is kept per HF projection (A and B of its own for q, for k, …), so
that it is exactly a PEFT adapter: one shared A for a fused layer would be another model with other gradients.

Tensor parallelism: a column-parallel host splits B's rows, a row-parallel one A's columns. Whatever is not split is
replicated and gets the same gradient on every rank: by the adjoint collectives below, or, under sequence parallelism
(each rank sees a part of the sequence), by the all-reduce that Megatron does for parameters marked `sequence_parallel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer import TransformerConfig
from torch import Tensor, nn

from bridge_mcore.config.schema import LORA_HOSTS, LORA_PROJECTIONS
from bridge_mcore.errors import ConfigError
from bridge_mcore.model.families.shape import ModelShape
from bridge_mcore.model.hooks import run_pre_hooks

#: Megatron module path inside a layer, by host name.
HOST_PATHS = {
    "linear_qkv": "self_attention.linear_qkv",
    "linear_proj": "self_attention.linear_proj",
    "linear_fc1": "mlp.linear_fc1",
    "linear_fc2": "mlp.linear_fc2",
}
#: HF module path inside a layer, by projection.
HF_PATHS = {
    **{p: f"self_attn.{p}" for p in ("q_proj", "k_proj", "v_proj", "o_proj")},
    **{p: f"mlp.{p}" for p in ("gate_proj", "up_proj", "down_proj")},
}
ROW_PARALLEL = ("linear_proj", "linear_fc2")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAShape:
    """Rank, scaling and the HF projections that carry an adapter."""

    rank: int
    alpha: float
    projections: tuple[str, ...]
    rank_stabilised: bool = False  # PEFT's use_rslora

    @property
    def scale(self) -> float:
        """Factor of B A: α/r, or α/√r when rank-stabilised."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def expand_targets(targets: Iterable[str], shape: ModelShape) -> tuple[str, ...]:
    """HF projections meant by `targets`, each of which is a Megatron linear or an HF projection.

    All Megatron linears (the default) or all projections (PEFT's "all-linear") mean all that the model has. Raises
    ConfigError for a target that is inside experts: an adapter would be needed for each of them.
    """
    wanted = {p for target in targets for p in LORA_HOSTS.get(target, (target,))}
    if shape.experts:
        if wanted == set(LORA_PROJECTIONS):
            wanted -= set(MLP_PROJECTIONS)
        refused = [t for t in targets if set(LORA_HOSTS.get(t, (t,))) & set(MLP_PROJECTIONS)]
        if wanted & set(MLP_PROJECTIONS):
            raise ConfigError(
                f"adapter targets {', '.join(refused)}: the MLPs of this model are {shape.experts} experts, which "
                "carry no adapter in this version; choose from linear_qkv, linear_proj, q_proj, k_proj, v_proj, o_proj"
            )
    return tuple(p for p in LORA_PROJECTIONS if p in wanted)


def projection_sizes(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """(in, out) features of each HF projection; of MLPs, of each expert's."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    h, ffn = shape.hidden_size, shape.mlp_width
    sizes = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
    return {**sizes, "gate_proj": (h, ffn), "up_proj": (h, ffn), "down_proj": (ffn, h)}


class LoRA(nn.Module):
    """Adapters of one host linear: the list of (A [r, in], B [out, r]) of the projections that it fuses."""

    def __init__(self, host: str, lora: LoRAShape, shape: ModelShape, config: TransformerConfig) -> None:
        super().__init__()
        self.row_parallel = host in ROW_PARALLEL
        self.sequence_parallel = config.sequence_parallel
        self.scale = lora.scale
        self.enabled = True
        self.fused = LORA_HOSTS[host]
        self.projections = [p for p in self.fused if p in lora.projections]
        tp = config.tensor_model_parallel_size
        sizes = projection_sizes(shape)
        # Local widths of every projection that the host fuses, adapted or not: their order makes the output.
        self.widths = [sizes[p][1] // (1 if self.row_parallel else tp) for p in self.fused]
        self.groups = shape.kv_heads // tp if host == "linear_qkv" else 1
        self.A = nn.ParameterDict()
        self.B = nn.ParameterDict()
        for p in self.projections:
            n_in, n_out = sizes[p]
            a = nn.Parameter(torch.empty(lora.rank, n_in // tp if self.row_parallel else n_in))
            b = nn.Parameter(torch.zeros(n_out if self.row_parallel else n_out // tp, lora.rank))
            self.A[p], self.B[p] = a, b
            split, replicated = (a, b) if self.row_parallel else (b, a)
            set_tensor_model_parallel_attributes(split, True, 1 if self.row_parallel else 0, 1)
            # Marks that Megatron reads: torch's stubs know no attributes of one's own on a parameter.
            replicated.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]
            for parameter in (a, b):
                parameter.is_adapter = True  # type: ignore[attr-defined]

    def initialise(self, generator: torch.Generator, tensor_rank: int, tensor_size: int) -> None:
        """A ~ U(±1/√in) (Kaiming with a = √5, as peft does), B = 0: the adapter starts as the identity.

        Every rank draws the full A from the same generator and keeps its part, so that the layout does not matter.
        """
        for p in self.projections:
            a = self.A[p]
            n_in = a.shape[1] * (tensor_size if self.row_parallel else 1)
            full = torch.empty(a.shape[0], n_in).uniform_(-1, 1, generator=generator) / math.sqrt(n_in)
            part = full.chunk(tensor_size, 1)[tensor_rank] if self.row_parallel else full
            with torch.no_grad():
                a.copy_(part)
                self.B[p].zero_()

    def forward(self, x: Tensor) -> Tensor:
        """What the adapters add to the host's output. x: the host's input [s, b, in]."""
        run_pre_hooks(self.A)
        run_pre_hooks(self.B)
        if not self.row_parallel and len(self.projections) > 1:
            # They share their input: one product and one collective for all of them.
            low = F.linear(x, torch.cat([self.A[p] for p in self.projections]).to(x.dtype))
        else:
            low = F.linear(x, self.A[self.projections[0]].to(x.dtype))
        low = self._collective(low)
        if self.scale != 1.0:
            low = low * self.scale  # r features a projection, far fewer than the output has
        parts = low.chunk(len(self.projections), -1)
        outputs = {p: F.linear(part, self.B[p].to(x.dtype)) for p, part in zip(self.projections, parts, strict=True)}
        if len(self.fused) == 1:
            return outputs[self.projections[0]]
        # For qkv: per key-value group [q…, k, v], as Megatron lays out linear_qkv. For fc1: [gate, up].
        like = outputs[self.projections[0]]
        full = []
        for p, width in zip(self.fused, self.widths, strict=True):
            out = outputs[p] if p in outputs else like.new_zeros(*like.shape[:-1], width)
            full.append(out.unflatten(-1, (self.groups, -1)))
        return torch.cat(full, -1).flatten(-2)

    @torch.no_grad()
    def weight_delta(self) -> Tensor:
        """scale · B A in the host's layout: what merging adds to this rank's shard of its weight, fp32 [out, in]."""
        n_in = next(iter(self.A.values())).shape[1]
        parts = []
        for p, width in zip(self.fused, self.widths, strict=True):
            if p in self.A:
                delta = self.scale * (self.B[p].float() @ self.A[p].float())
            else:
                delta = torch.zeros(width, n_in, device=next(iter(self.A.values())).device)
            parts.append(delta.unflatten(0, (self.groups, -1)))
        return torch.cat(parts, 1).flatten(0, 1)

    def _collective(self, low: Tensor) -> Tensor:
        """A x in full on every tensor rank, or its part of the sequence after a row-parallel host."""
        if self.row_parallel:
            if self.sequence_parallel:
                return reduce_scatter_to_sequence_parallel_region(low)
            return reduce_from_tensor_model_parallel_region(low)
        if self.sequence_parallel:
            # Gathering r features instead of the whole hidden state costs next to nothing.
            return gather_from_sequence_parallel_region(low, tensor_parallel_output_grad=True)
        return copy_to_tensor_model_parallel_region(low)


def _add_adapter(host: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor | None]) -> object:
    if not host.lora.enabled:
        return None
    return (output[0] + host.lora(inputs[0]), *output[1:])


def attach_lora(chunks: Iterable[Any], lora: LoRAShape, shape: ModelShape, seed: int) -> None:
    """Give every targeted linear of a GPTModel's chunks its adapters; they are initialised with B = 0.

    The same seed gives the same global A whatever the layout, because each layer seeds its own generator.
    """
    rank, size = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    for layer in (layer for chunk in chunks for layer in chunk.decoder.layers):
        for index, (host, projections) in enumerate(LORA_HOSTS.items()):
            if not set(projections) & set(lora.projections):
                continue
            module = layer.get_submodule(HOST_PATHS[host])
            module.lora = LoRA(host, lora, shape, layer.config)
            # layer_number counts from 1 over the whole model, not over this pipeline stage.
            generator = torch.Generator().manual_seed((seed << 20) + layer.layer_number * 16 + index)
            module.lora.initialise(generator, rank, size)
            module.register_forward_hook(_add_adapter)


@contextmanager
def adapters_disabled(chunks: Iterable[nn.Module]) -> Iterator[None]:
    """Run the model as θ alone, without w (as the reference policy is)."""
    modules = [m for chunk in chunks for m in chunk.modules() if isinstance(m, LoRA)]
    for m in modules:
        m.enabled = False
    try:
        yield
    finally:
        for m in modules:
            m.enabled = True
