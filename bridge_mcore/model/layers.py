"""What a decoder layer is made of: Megatron's own layers, or Transformer Engine's where there is a GPU for them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import Tensor, nn

from bridge_mcore.model.attention import CoreAttention
from bridge_mcore.model.families.shape import ModelShape
from bridge_mcore.model.norms import AllHeadsNorm, RMSNorm


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": gelu_tanh}


class NormedAdd(nn.Module):
    """Adds the norm of attention's or the MLP's output (adapters included) to the residual stream.

    It stands where Megatron has its bias-dropout-add, which has nothing else to do here.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:
        """What Megatron calls with (output [s, b, h], its bias), the residual stream and the dropout."""
        return self._add

    def _add(self, output_with_bias: tuple[Tensor, Tensor | None], residual: Tensor, dropout: float) -> Tensor:
        return residual + self.norm(output_with_bias[0])


class DecoderLayer(TransformerLayer):
    """Megatron's layer with what it has no place for: norms after attention and MLP, angles by the kind of layer."""

    def __init__(self, config: Any, submodules: Any, *args: Any, shape: ModelShape, norm: Any, **options: Any) -> None:
        super().__init__(config, submodules, *args, **options)
        if shape.norms != "pre":
            size = {"config": config, "hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
            self.self_attn_bda, self.mlp_bda = (NormedAdd(build_module(norm, **size)) for _ in range(2))
            # Megatron would switch gradients on for the addition, which has weights now, even while decoding.
            self.bias_dropout_add_exec_handler = nullcontext
        self.local_angles = None if shape.local_rope is None else shape.windows[self.layer_number - 1] is not None

    def forward(self, *args: Any, rotary_pos_emb: Tensor | None = None, **options: Any) -> Any:
        """As TransformerLayer's; of two ropes rotary_pos_emb [s, b, 1, 2 · head_dim] holds the angles side by side."""
        if rotary_pos_emb is not None and self.local_angles is not None:
            rotary_pos_emb = rotary_pos_emb.chunk(2, -1)[int(self.local_angles)]
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb, **options)


def layer_spec(shape: ModelShape, transformer_engine: bool = False) -> tuple[ModuleSpec, Any]:
    """(specification of one layer, that of the last norm).

    With `transformer_engine` the norms and the linear layers outside of experts are Transformer Engine's. Its fused
    norm + linear is not used: an adapter needs the linear's own input. Attention is always ours, which packs.
    """
    spec = get_gpt_layer_local_spec(
        num_experts=shape.experts or None,
        moe_grouped_gemm=False,
        normalization="RMSNorm",
        qk_layernorm=shape.qk_norm == "head",
    )
    weighting = {"weighting": shape.norm_weight}
    norm: Any = ModuleSpec(RMSNorm, params=weighting)
    attention = spec.submodules.self_attention.submodules
    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm, TERowParallelLinear

        norm = TENorm  # it takes 1 + weight from the configuration
        attention.linear_qkv, attention.linear_proj = TEColumnParallelLinear, TERowParallelLinear
        if not shape.experts:
            mlp = spec.submodules.mlp.submodules
            mlp.linear_fc1, mlp.linear_fc2 = TEColumnParallelLinear, TERowParallelLinear
    before = IdentityOp if shape.norms == "post" else norm
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = before
    attention.core_attention = partial(CoreAttention, windows=shape.windows)
    if shape.qk_norm == "head":
        attention.q_layernorm = attention.k_layernorm = norm
    elif shape.qk_norm == "full":
        attention.q_layernorm, attention.k_layernorm = (
            ModuleSpec(AllHeadsNorm, params={**weighting, "heads": heads}) for heads in (shape.heads, shape.kv_heads)
        )
    if shape.norms != "pre" or shape.local_rope is not None:
        spec.module, spec.params = DecoderLayer, {**spec.params, "shape": shape, "norm": norm}
    return spec, norm
