"""Causal attention over packed sequences: one row of tokens, in which no sequence sees another.

`segments` are the full lengths of the sequences, in order. Under context parallelism every sequence of length L is cut
into 2c equal chunks, and context rank r holds chunks r and 2c-1-r (zig-zag: early chunks see few keys, late ones many,
so every rank has equal work). Its queries meet the keys of all ranks; each chunk attends to its sequence's prefix.

With a window, the query at position i of its sequence sees the keys at j with i - window < j <= i.

Half precision on a GPU uses a variable-length flash kernel. Everything else gathers sequences of similar length into
padded batches for scaled_dot_product_attention. No score matrix over the whole row ever exists.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

#: Score entries (per head) that padding may add to a batch: about what one more call would cost on a CPU.
_WASTE = 4000


def zigzag(segments: Sequence[int], context_size: int, context_rank: int) -> np.ndarray:
    """Which positions of the full row a context rank holds, in its order: int64 [T / context_size]."""
    chunks = _Chunks.of(tuple(segments), context_size, context_rank)
    return _ranges(chunks.sequence + chunks.offset, chunks.length)


def gathered_order(segments: Sequence[int], context_size: int) -> np.ndarray:
    """Where in the ranks' rows, laid one after another, each position of the full row is: int64 [T]."""
    return np.argsort(np.concatenate([zigzag(segments, context_size, rank) for rank in range(context_size)]))


def visible(positions: Tensor, keys: int, window: int | None = None) -> Tensor:
    """Whether the query at each of `positions` [..., q] sees key 0 … keys-1: boolean [..., q, keys]."""
    column, row = torch.arange(keys, device=positions.device), positions[..., None]
    seen = column <= row
    return seen if window is None else seen & (column > row - window)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[start, start + 1, …, start + length - 1] of each, one after another."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


@dataclass(frozen=True)
class _Chunks:
    """The pieces of sequences that one rank holds, in its order; int64 arrays of one length."""

    length: np.ndarray  # positions of the chunk
    sequence: np.ndarray  # where its sequence starts in the full row
    offset: np.ndarray  # where it starts in its sequence: keys that all its queries see

    @classmethod
    def of(cls, segments: tuple[int, ...], size: int, rank: int) -> _Chunks:
        full = np.asarray(segments, dtype=np.int64)
        if not len(full) or full.min() < 1:
            raise ValueError("a packed row needs sequences, and each of them a token")
        starts = np.cumsum(full) - full
        if size == 1:
            return cls(full, starts, np.zeros_like(full))
        if (full % (2 * size)).any():
            raise ValueError(f"context parallelism over {size} ranks needs lengths that divide by {2 * size}")
        length = np.repeat(full // (2 * size), 2)
        which = np.tile([rank, 2 * size - 1 - rank], len(full))
        return cls(length, np.repeat(starts, 2), which * length)


@dataclass(frozen=True)
class _Varlen:
    """What a variable-length kernel wants; it aligns queries with the end of their keys."""

    query_ends: Tensor  # int32 [chunks + 1], from 0
    key_ends: Tensor
    longest_query: int
    longest_key: int
    keys: Tensor | None  # rows of the gathered keys, chunk after chunk; None: as they are


@dataclass(frozen=True)
class _Bucket:
    """Chunks of similar length as a right-padded batch [rows, queries] against [rows, keys]."""

    rows: int
    queries: int
    keys: int
    offsets: Tensor | None  # [rows], see _Chunks; None where all are 0


@dataclass(frozen=True)
class _Buckets:
    """Index maps between this rank's row, the gathered keys, and the batches laid one after another."""

    buckets: tuple[_Bucket, ...]
    queries: Tensor  # rows of the query; padding repeats the chunk's last one, so that nothing foreign comes near it
    keys: Tensor
    out: Tensor  # [T_local]: where in the batches each local position is


@lru_cache(maxsize=64)
def _varlen_plan(segments: tuple[int, ...], size: int, rank: int, device: torch.device) -> _Varlen:
    chunks = _Chunks.of(segments, size, rank)
    prefix = chunks.offset + chunks.length

    def ends(lengths: np.ndarray) -> Tensor:
        return torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32, device=device)

    keys = None
    if size > 1:
        keys = torch.tensor(gathered_order(segments, size)[_ranges(chunks.sequence, prefix)], device=device)
    return _Varlen(ends(chunks.length), ends(prefix), int(chunks.length.max()), int(prefix.max()), keys)


@lru_cache(maxsize=64)
def _bucket_plan(segments: tuple[int, ...], size: int, rank: int, device: torch.device) -> _Buckets:
    chunks = _Chunks.of(segments, size, rank)
    local = np.cumsum(chunks.length) - chunks.length
    position = gathered_order(segments, size)
    buckets, queries, keys = [], [], []
    out = np.empty(chunks.length.sum(), dtype=np.int64)
    laid = 0
    for members in _similar(chunks):
        length, offset = chunks.length[members][:, None], chunks.offset[members][:, None]
        columns = np.arange(length.max())
        queries.append((local[members][:, None] + np.minimum(columns, length - 1)).ravel())
        key_columns = np.arange((offset + length).max())
        seen = chunks.sequence[members][:, None] + np.minimum(key_columns, offset + length - 1)
        keys.append(position[seen].ravel())
        real = columns < length
        out[queries[-1][real.ravel()]] = laid + np.flatnonzero(real)
        laid += real.size
        offsets = torch.tensor(offset[:, 0], device=device) if offset.any() else None
        buckets.append(_Bucket(len(members), len(columns), len(key_columns), offsets))
    index = torch.tensor(np.concatenate(queries), device=device)
    key_index = index if size == 1 else torch.tensor(np.concatenate(keys), device=device)
    return _Buckets(tuple(buckets), index, key_index, torch.tensor(out, device=device))


def _similar(chunks: _Chunks) -> list[list[int]]:
    """Groups of chunks that are worth padding to one length, those at the same place of their sequences together."""
    place = chunks.offset // chunks.length
    groups: list[list[int]] = []
    waste = 0
    for i in np.lexsort((-chunks.length, place)).tolist():
        if groups and place[i] == place[groups[-1][0]]:
            top, mine = (int(chunks.length[j]) for j in (groups[-1][0], i))
            waste += (top * top - mine * mine) * int(place[i] + 1)
            if waste <= _WASTE:
                groups[-1].append(i)
                continue
        groups.append([i])
        waste = 0
    return groups


@cache
def _has_flash_attn() -> bool:
    """The flash_attn package, version 2; newer ones share its name without this interface."""
    if importlib.util.find_spec("flash_attn") is None:
        return False
    return importlib.util.find_spec("flash_attn.flash_attn_interface") is not None


def _has_kernel(query: Tensor) -> bool:
    """Whether a variable-length kernel takes such tensors."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 256


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, plan: _Varlen, scale: float, window: int | None
) -> Tensor:
    if plan.keys is not None:
        # A key is taken at most twice, so the order of the sum in the backward pass does not matter.
        key, value = key.index_select(0, plan.keys), value.index_select(0, plan.keys)
    ends, longest = (plan.query_ends, plan.key_ends), (plan.longest_query, plan.longest_key)
    # Both kernels count the keys before the query's own; -1 means all.
    sides = (-1 if window is None or window >= plan.longest_key else window - 1, 0)
    if _has_flash_attn():
        from flash_attn import flash_attn_varlen_func

        return flash_attn_varlen_func(
            query, key, value, *ends, *longest, softmax_scale=scale, causal=True, window_size=sides
        )
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    out = varlen_attn(query, key, value, *ends, *longest, scale=scale, window_size=sides, enable_gqa=grouped)
    assert isinstance(out, Tensor)  # a tuple only if more is asked for
    return out


def _attend_buckets(
    query: Tensor, key: Tensor, value: Tensor, plan: _Buckets, scale: float, window: int | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:  # there, the kernels that take fp32 want as many key heads as query heads
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        grouped = False
    query_sizes = [b.rows * b.queries for b in plan.buckets]
    key_sizes = [b.rows * b.keys for b in plan.buckets]
    outputs = []
    for bucket, q, k, v in zip(
        plan.buckets,
        query.index_select(0, plan.queries).split(query_sizes),
        key.index_select(0, plan.keys).split(key_sizes),
        value.index_select(0, plan.keys).split(key_sizes),
        strict=True,
    ):
        q, k, v = (x.unflatten(0, (bucket.rows, -1)).transpose(1, 2) for x in (q, k, v))
        mask = None
        if bucket.offsets is not None or (window is not None and window < bucket.keys):
            positions = torch.arange(bucket.queries, device=q.device)[None]
            if bucket.offsets is not None:
                positions = bucket.offsets[:, None] + positions
            mask = visible(positions, bucket.keys, window)[:, None]
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, plan.out)


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Tensor,
    scale: float,
    context_size: int = 1,
    context_rank: int = 0,
    window: int | None = None,
) -> Tensor:
    """Causal attention inside each segment.

    Args:
        query: this context rank's [T / context_size, heads, d].
        key, value: of all context ranks, one after another in rank order [T, kv_heads, d].
        segments: full lengths, integers [n] on the CPU; with context_size > 1 multiples of 2 · context_size.
        scale: of the scores.
        window: how many keys a query sees, its own the last; None: all before it.
    Returns:
        [T / context_size, heads, d], in the order of `query`.
    Raises:
        ValueError: if the segments do not add up to the rows, or cannot be cut.
    """
    lengths = tuple(segments.tolist())
    if sum(lengths) != key.shape[0] or key.shape[0] != query.shape[0] * context_size:
        raise ValueError(
            f"segments of {sum(lengths)} positions do not fit {query.shape[0]} queries and {key.shape[0]} keys "
            f"over {context_size} context ranks"
        )
    if _has_kernel(query):
        plan = _varlen_plan(lengths, context_size, context_rank, query.device)
        return _attend_varlen(query, key, value, plan, scale, window)
    buckets = _bucket_plan(lengths, context_size, context_rank, query.device)
    return _attend_buckets(query, key, value, buckets, scale, window)
