"""Attention over packed rows against scaled_dot_product_attention on each sequence alone."""

from __future__ import annotations

import functools
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bridge_mcore.model import packed
from bridge_mcore.model.packed import packed_attention, zigzag
from bridge_mcore.platform.ranks import free_port

SCALE = 0.3


def tensors(seed: int, total: int, heads: int, kv_heads: int, d: int = 8, dtype=torch.float64) -> list[Tensor]:
    """query, key, value and the gradient of the output."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(total, n, d, generator=g, dtype=dtype) for n in (heads, kv_heads, kv_heads, heads)]


def alone(query: Tensor, key: Tensor, value: Tensor, segments: list[int], window: int | None = None) -> Tensor:
    outputs = []
    for parts in zip(query.split(segments), key.split(segments), value.split(segments), strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in parts)
        mask = None
        if window is not None:
            mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril().triu(1 - window)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=SCALE, enable_gqa=True
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


def with_gradients(function, q: Tensor, k: Tensor, v: Tensor, gradient: Tensor) -> list[Tensor]:
    """The output, and the gradients of q, k and v."""
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def in_rank_order(x: Tensor, segments: list[int], size: int) -> Tensor:
    return torch.cat([x[torch.from_numpy(zigzag(segments, size, rank)).to(x.device)] for rank in range(size)])


def over_ranks(q: Tensor, k: Tensor, v: Tensor, segments: list[int], size: int, window: int | None = None) -> Tensor:
    """What all context ranks together compute, in the order of the full row."""
    mine = [torch.from_numpy(zigzag(segments, size, rank)).to(q.device) for rank in range(size)]
    keys, values = (in_rank_order(x, segments, size) for x in (k, v))
    lengths = torch.tensor(segments)
    parts = [packed_attention(q[index], keys, values, lengths, SCALE, size, r, window) for r, index in enumerate(mine)]
    return torch.cat(parts)[torch.cat(mine).argsort()]


def some_segments(seed: int, unit: int = 1) -> list[int]:
    g = random.Random(seed)
    lengths = [1, 1, *(g.randint(1, 40) for _ in range(9)), 150, g.randint(100, 300)]
    g.shuffle(lengths)
    return [n * unit for n in lengths]


def close(got: list[Tensor], want: list[Tensor]) -> None:
    for name, a, b in zip(("output", "query", "key", "value"), got, want, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max(), name


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", ["mixed", "one token", "one sequence", "equal"])
def test_equals_each_sequence_alone(seed, heads, kv_heads, lengths):
    segments = {"mixed": some_segments(seed), "one token": [1], "one sequence": [57], "equal": [20] * 5}[lengths]
    *qkv, gradient = tensors(seed, sum(segments), heads, kv_heads)
    got = with_gradients(lambda q, k, v: packed_attention(q, k, v, torch.tensor(segments), SCALE), *qkv, gradient)
    close(got, with_gradients(lambda q, k, v: alone(q, k, v, segments), *qkv, gradient))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("window", [2, 7, 100, 10_000])
def test_a_window_hides_what_is_too_far_back(seed, size, window):
    segments = some_segments(seed, unit=2 * size)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2)
    got = with_gradients(lambda q, k, v: over_ranks(q, k, v, segments, size, window), *qkv, gradient)
    close(got, with_gradients(lambda q, k, v: alone(q, k, v, segments, window), *qkv, gradient))


@pytest.mark.parametrize("window", [1, 5, 30])
def test_a_window_over_batches_and_over_a_cache(world, seed, window):
    """A whole batch, a left-padded one and decoding over a cache see what each sequence sees in a packed row."""
    from bridge_mcore.model.attention import CoreAttention, KVCache

    lengths, prompt, total = [17, 25], 9, 25
    config = SimpleNamespace(kv_channels=8, context_parallel_size=1)
    module = CoreAttention(config, 2, SCALE, windows=(None, window))
    rows = [tensors(seed + i, n, 4, 2)[:3] for i, n in enumerate(lengths)]
    want = [alone(*row, [n], window).flatten(1) for row, n in zip(rows, lengths, strict=True)]
    assert (module(*(x[:, None] for x in rows[1]))[:, 0] - want[1]).abs().max() < 1e-12
    padding = torch.tensor([total - n for n in lengths])
    q, k, v = (
        torch.stack([F.pad(row[i], (0, 0, 0, 0, total - n, 0)) for row, n in zip(rows, lengths, strict=True)], 1)
        for i in range(3)
    )
    column = torch.arange(total)
    real = (column >= padding[:, None])[:, None, None]
    mask = real & (column[:, None] >= column) | torch.eye(total, dtype=torch.bool)
    whole = module(q, k, v, mask)
    module.cache = KVCache(total)
    outputs = [module(q[:prompt], k[:prompt], v[:prompt], mask[..., :prompt, :prompt])]
    module.cache.advance(prompt)
    for at in range(prompt, total):
        one = slice(at, at + 1)
        outputs.append(module(q[one], k[one], v[one], real[..., : at + 1]))
        module.cache.advance(1)
    for out in (whole, torch.cat(outputs)):
        for i, n in enumerate(lengths):
            assert (out[total - n :, i] - want[i]).abs().max() < 1e-12


@pytest.mark.parametrize("size", [1, 2])
def test_a_sequence_never_feels_another(seed, size):
    """Everything else in the row is replaced, by NaN even: outputs and gradients of one sequence keep every bit."""
    segments = some_segments(seed, unit=2 * size)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2, dtype=torch.float32)
    attend = functools.partial(over_ranks, segments=segments, size=size)
    before = with_gradients(attend, *qkv, gradient)
    for which in range(len(segments)):
        mine = slice(sum(segments[:which]), sum(segments[: which + 1]))
        for filling in (1e3, float("nan")):
            others = [torch.full_like(x, filling) for x in (*qkv, gradient)]
            for other, x in zip(others, (*qkv, gradient), strict=True):
                other[mine] = x[mine]
            for a, b in zip(with_gradients(attend, *others), before, strict=True):
                assert torch.equal(a[mine], b[mine])


@pytest.mark.parametrize("size", [2, 3])
def test_context_ranks_together_equal_one(seed, size):
    segments = some_segments(seed, unit=2 * size)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2)
    got = with_gradients(lambda q, k, v: over_ranks(q, k, v, segments, size), *qkv, gradient)
    close(got, with_gradients(lambda q, k, v: alone(q, k, v, segments), *qkv, gradient))


def reference_kernel(query, key, value, query_ends, key_ends, max_q, max_k, softmax_scale, causal, window_size):
    """What flash_attn_varlen_func promises: queries aligned with the end of their keys; so many before its own."""
    assert causal and window_size[1] == 0 and query_ends.dtype == key_ends.dtype == torch.int32
    outputs = []
    for i in range(len(query_ends) - 1):
        q, k, v = (
            x[ends[i] : ends[i + 1]].transpose(0, 1)
            for x, ends in ((query, query_ends), (key, key_ends), (value, key_ends))
        )
        n, m = q.shape[1], k.shape[1]
        assert n <= max_q and m <= max_k
        mask = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        if window_size[0] >= 0:
            mask = mask.triu(m - n - window_size[0])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale, enable_gqa=True)
        outputs.append(out.transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize(("size", "window"), [(1, None), (2, None), (3, None), (1, 20), (2, 20), (2, 10_000)])
def test_variable_length_kernels_get_the_right_lengths_and_keys(seed, size, window, monkeypatch):
    """The path of half precision on a GPU, with a stand-in for the kernel."""
    monkeypatch.setattr(packed, "_has_kernel", lambda query: True)
    monkeypatch.setattr(packed, "_has_flash_attn", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=reference_kernel))
    segments = some_segments(seed, unit=2 * size)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2)
    got = with_gradients(lambda q, k, v: over_ranks(q, k, v, segments, size, window), *qkv, gradient)
    close(got, with_gradients(lambda q, k, v: alone(q, k, v, segments, window), *qkv, gradient))


def test_segments_must_fit():
    q, k, v, _ = tensors(0, 12, 2, 2)
    with pytest.raises(ValueError, match="do not fit"):
        packed_attention(q, k, v, torch.tensor([5, 6]), SCALE)
    with pytest.raises(ValueError, match="divide by 4"):
        packed_attention(q[:6], k, v, torch.tensor([6, 6]), SCALE, 2, 0)
    with pytest.raises(ValueError, match="a token"):
        packed_attention(q, k, v, torch.tensor([0, 12]), SCALE)


def core(context_size: int):
    from bridge_mcore.model.attention import CoreAttention

    return CoreAttention(SimpleNamespace(kv_channels=8, context_parallel_size=context_size), 1, SCALE)


@pytest.mark.parametrize("recompute", [False, True])
def test_core_attention_takes_segments_as_its_mask(world, seed, recompute):
    """Shapes and recomputation as Megatron has them: tensors only, the segments among them."""
    from megatron.core import tensor_parallel

    segments = some_segments(seed)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2)
    lengths = torch.tensor(segments, dtype=torch.int32)
    module = core(1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        arguments = (q[:, None], k[:, None], v[:, None], lengths)
        out = tensor_parallel.checkpoint(module, False, *arguments) if recompute else module(*arguments)
        assert out.shape == (len(q), 1, 32)
        return out.unflatten(2, (4, 8))[:, 0]

    close(
        with_gradients(attend, *qkv, gradient),
        with_gradients(lambda q, k, v: alone(q, k, v, segments), *qkv, gradient),
    )


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("window", [None, 20])
def test_gpu_kernels_equal_the_cpu(seed, size, dtype, window):
    segments = some_segments(seed, unit=2 * size)
    *qkv, gradient = (x.to("cuda", dtype) for x in tensors(seed, sum(segments), 4, 2, d=64))
    got = with_gradients(lambda q, k, v: over_ranks(q, k, v, segments, size, window), *qkv, gradient)
    exact = [x.cpu().double() for x in (*qkv, gradient)]
    want = with_gradients(lambda q, k, v: alone(q, k, v, segments, window), *exact)
    for a, b in zip(got, want, strict=True):
        assert (a.cpu().double() - b).norm() <= (1e-2 if dtype == torch.bfloat16 else 1e-5) * b.norm()


def _context_rank(rank: int, size: int, port: int, directory: str, seed: int) -> None:
    """One process: this rank's rows through CoreAttention, outputs and gradients into a file."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from megatron.core import parallel_state as mpu

    from bridge_mcore.config.schema import Parallel
    from bridge_mcore.platform.device import setup_device
    from bridge_mcore.platform.distributed import process_groups

    with process_groups(setup_device("cpu"), Parallel(context=size), seed=0):
        assert mpu.get_context_parallel_rank() == rank
        segments = some_segments(seed, unit=2 * size)
        mine = torch.from_numpy(zigzag(segments, size, rank))
        *qkv, gradient = (x[mine] for x in tensors(seed, sum(segments), 4, 2))
        lengths, module = torch.tensor(segments, dtype=torch.int32), core(size)
        got = with_gradients(
            lambda q, k, v: module(q[:, None], k[:, None], v[:, None], lengths).unflatten(2, (4, 8))[:, 0],
            *qkv,
            gradient,
        )
        # A batch, as in decoding, is whole on every rank.
        whole = module(*(x[:, None] for x in qkv), None)
        assert torch.equal(whole.unflatten(2, (4, 8))[:, 0], alone(*qkv, [len(mine)]))
        torch.save(got, Path(directory) / f"{rank}.pt")


def test_two_context_processes_equal_one(seed, tmp_path):
    segments = some_segments(seed, unit=4)
    *qkv, gradient = tensors(seed, sum(segments), 4, 2)
    torch.multiprocessing.start_processes(
        _context_rank, (2, free_port(), str(tmp_path), seed), nprocs=2, start_method="spawn"
    )
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    back = torch.cat([torch.from_numpy(zigzag(segments, 2, rank)) for rank in range(2)]).argsort()
    got = [torch.cat(pair)[back] for pair in zip(*parts, strict=True)]
    close(got, with_gradients(functools.partial(alone, segments=segments), *qkv, gradient))
