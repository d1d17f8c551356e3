"""Core attention: over packed sequences (also across context ranks), over batches, and over a decoding cache.

A layer may have a window: the query at position i then sees the keys at j with i - window < j <= i.

Megatron's own DotProductAttention materialises the score matrix; this one uses flash kernels on CPU and GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state as mpu
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from bridge_mcore.model.packed import packed_attention, visible


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
    """Causal attention for Megatron's SelfAttention; grouped queries, optional cache, boolean mask or segments.

    What packs the row travels as `attention_mask`, because that is the one argument that Megatron hands through
    pipeline layers and activation recomputation alike. Only packed rows are split over context ranks: a batch, as in
    decoding, is whole on every rank.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        softmax_scale: float | None = None,
        windows: Sequence[int | None] = (),
        **_: Any,
    ) -> None:
        """layer_number: from 1, over the whole model, as the entries of `windows` are (empty: no layer has one)."""
        super().__init__(config)
        self.layer_number = layer_number
        self.window = windows[layer_number - 1] if windows else None
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        self.cache: KVCache | None = None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, kv_heads, d]. Returns [s, b, heads · d].

        attention_mask: None for plain causal; boolean, True where it may look [b, 1, s, s_kv]; or one-dimensional:
        the full lengths of the sequences packed in the one row, integers on the CPU (b = 1, see `model.packed`).
        """
        if attention_mask is not None and attention_mask.dim() == 1:
            return self._packed(query[:, 0], key[:, 0], value[:, 0], attention_mask).flatten(1)[:, None]
        q = query.permute(1, 2, 0, 3)
        if self.cache is not None:
            k, v = self.cache.append(self.layer_number, key, value)
        else:
            k, v = key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)
        causal = attention_mask is None and q.shape[2] > 1
        if causal and q.shape[2] != k.shape[2]:
            raise ValueError("several new positions over a cache need an explicit mask")
        if self.window is not None and k.shape[2] > self.window:
            k, v, attention_mask = self._windowed(q.shape[2], k, v, attention_mask)
            causal = False
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=attention_mask, is_causal=causal, scale=self.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.permute(2, 0, 1, 3).flatten(2)

    def _windowed(
        self, queries: int, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys, values and mask of the last positions of [b, kv_heads, s_kv, d], without what the window hides."""
        assert self.window is not None
        if queries == 1:  # a decoded position sees the end of the cache
            last = slice(-self.window, None)
            return key[:, :, last], value[:, :, last], None if mask is None else mask[..., last]
        length = key.shape[2]
        seen = visible(torch.arange(length - queries, length, device=key.device), length, self.window)
        return key, value, seen if mask is None else mask & seen

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, segments: Tensor) -> Tensor:
        if self.cache is not None:
            raise ValueError("packed sequences cannot be decoded over a cache")
        size = self.config.context_parallel_size
        if size == 1:
            return packed_attention(query, key, value, segments, self.scale, window=self.window)
        group = mpu.get_context_parallel_group()
        # One collective for both; its backward sums every rank's share of the gradient (reduce-scatter).
        keys, values = gather_from_sequence_parallel_region(torch.stack([key, value], 1), group=group).unbind(1)
        return packed_attention(query, keys, values, segments, self.scale, size, group.rank(), self.window)
