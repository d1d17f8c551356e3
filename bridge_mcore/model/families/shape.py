"""What a decoder is made of: everything that the model code can express, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base, and what scales its frequencies: Llama 3's rule (None: not), or one factor for all."""

    theta: float
    llama3: dict[str, float] | None = None
    factor: float = 1.0  # positions count as 1/factor: transformers' "linear"

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """Inverse frequencies, fp32 [head_dim / 2], as transformers computes them."""
        inv_freq = 1.0 / (self.theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))
        if self.llama3 is None:
            return inv_freq / self.factor
        factor, low, high = (self.llama3[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
        context = self.llama3["original_max_position_embeddings"]
        wavelength = 2 * torch.pi / inv_freq
        # Long waves are slowed by `factor`, short ones kept, those between are interpolated.
        scaled = torch.where(wavelength > context / low, inv_freq / factor, inv_freq)
        smooth = (context / wavelength - low) / (high - low)
        between = ~(wavelength < context / high) & ~(wavelength > context / low)
        return torch.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled)


@dataclass(frozen=True)
class ModelShape:
    """Everything about a decoder that Megatron needs; HF config in, TransformerConfig out."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    tied: bool
    max_positions: int
    qkv_bias: bool = False
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
    #: where a layer's norms are: before attention and MLP (Llama), before and after (Gemma), or after (OLMo 2)
    norms: Literal["pre", "sandwich", "post"] = "pre"
    #: how a norm uses its weight: after rounding to the model's dtype (Llama), in fp32 before it (OLMo 2), or so, with
    #: 1 + weight as the factor (Gemma)
    norm_weight: Literal["rounded", "wide", "one_plus"] = "rounded"
    #: norms of queries and keys: of each head by itself (Qwen3), or of all heads of a token together (OLMo 2)
    qk_norm: Literal["none", "head", "full"] = "none"
    embedding_scale: float = 1.0  # of what goes into the first layer, rounded to the model's dtype
    softmax_scale: float | None = None  # of the attention's scores; None: 1 / √head_dim
    #: of each layer: a query sees so many keys, its own the last; None: all. (): no layer has a window
    windows: tuple[int | None, ...] = ()
    local_rope: Rope | None = None  # of the layers with a window, if it is not that of the others
    experts: int = 0  # of every layer, which then has no dense MLP; 0: a dense model
    experts_per_token: int = 0
    expert_intermediate_size: int = 0

    @property
    def mlp_width(self) -> int:
        """Width of the MLPs that the model has: one a layer, or its experts."""
        return self.expert_intermediate_size or self.intermediate_size
