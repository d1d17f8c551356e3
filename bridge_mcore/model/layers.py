"""What a decoder layer is made of: Megatron's own layers, or Transformer Engine's where there is a GPU for them."""

from __future__ import annotations

from typing import Any

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec

from bridge_mcore.model.attention import CoreAttention, RMSNorm
from bridge_mcore.model.families.base import ModelShape


def layer_spec(shape: ModelShape, transformer_engine: bool = False) -> tuple[ModuleSpec, Any]:
    """(specification of one layer, class of its norms).

    With `transformer_engine` the norms and the linear layers outside of experts are Transformer Engine's. Its fused
    norm + linear is not used: an adapter needs the linear's own input. Attention is always ours, which packs.
    """
    spec = get_gpt_layer_local_spec(
        num_experts=shape.experts or None, moe_grouped_gemm=False, normalization="RMSNorm", qk_layernorm=shape.qk_norm
    )
    norm: Any = RMSNorm
    attention = spec.submodules.self_attention.submodules
    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear, TENorm, TERowParallelLinear

        norm = TENorm
        attention.linear_qkv, attention.linear_proj = TEColumnParallelLinear, TERowParallelLinear
        if not shape.experts:
            mlp = spec.submodules.mlp.submodules
            mlp.linear_fc1, mlp.linear_fc2 = TEColumnParallelLinear, TERowParallelLinear
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = norm
    attention.core_attention = CoreAttention
    if shape.qk_norm:
        attention.q_layernorm = attention.k_layernorm = norm
    return spec, norm
