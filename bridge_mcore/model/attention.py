"""Core attention on PyTorch's scaled_dot_product_attention, with the key-value cache that decoding needs.

Megatron's own DotProductAttention materialises the score matrix; this one uses flash kernels on CPU and GPU.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.module import MegatronModule
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019), statistics in fp32, as transformers computes it.

    Unlike Megatron's WrappedTorchNorm it may be used under sequence parallelism: it marks its weight so that Megatron
    all-reduces its gradient over tensor ranks.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]  # Megatron's mark

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden_size] in any float dtype; the same shape and dtype back."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class KVCache:
    """Keys and values of every layer for one batch of sequences that decode together.

    Sequences are left-padded to one length, so they share one write position. Tensors are [b, kv_heads, length, d].
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.length = 0  # positions written by every layer
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write [s, b, kv_heads, d] at the current position; return all keys, values [b, kv_heads, length + s, d]."""
        s, b, heads, d = key.shape
        end = self.length + s
        if end > self.max_length:
            raise ValueError(f"key-value cache of {self.max_length} positions cannot take position {end}")
        for store, new in ((self._keys, key), (self._values, value)):
            if layer not in store:
                store[layer] = new.new_empty(b, heads, self.max_length, d)
            store[layer][:, :, self.length : end] = new.permute(1, 2, 0, 3)
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, positions: int) -> None:
        """All layers have written `positions` more."""
        self.length += positions

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) these batch rows: finished sequences drop out, a shared prompt fans out."""
        for store in (self._keys, self._values):
            for layer, tensor in store.items():
                new = tensor.new_empty(len(rows), *tensor.shape[1:])
                new[:, :, : self.length] = tensor[:, :, : self.length].index_select(0, rows)
                store[layer] = new


class CoreAttention(MegatronModule):
    """Causal attention for Megatron's SelfAttention; grouped queries, optional cache, optional boolean mask."""

    def __init__(self, config: Any, layer_number: int, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config)
        self.layer_number = layer_number
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.cache: KVCache | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, kv_heads, d]; attention_mask: True where it may look
        [b, 1, s, s_kv], or None for plain causal. Returns [s, b, heads · d]."""
        q = query.permute(1, 2, 0, 3)
        if self.cache is not None:
            k, v = self.cache.append(self.layer_number, key, value)
        else:
            k, v = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
        causal = attention_mask is None and q.shape[2] > 1
        if causal and q.shape[2] != k.shape[2]:
            raise ValueError("several new positions over a cache need an explicit mask")
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_mask, is_causal=causal, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)
