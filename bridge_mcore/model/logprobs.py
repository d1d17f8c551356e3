"""Token log-probabilities from hidden states, in chunks of tokens and shards of vocabulary.

The logits of a whole batch never exist: for each chunk of tokens they are computed, used and dropped, and computed
again in the backward pass. Peak memory is chunk × vocabulary / tensor-parallel size in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _TokenLogProbs(torch.autograd.Function):
    """log π(label | hidden) for each token; see `token_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        inverse_temperature: Tensor,
        first_row: int,
        rows: int,
        group: dist.ProcessGroup | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        n = hidden.shape[0]
        logprobs = torch.empty(n, dtype=torch.float32, device=hidden.device)
        entropy, normaliser = torch.empty_like(logprobs), torch.empty_like(logprobs)
        kept = None
        for start in range(0, n, chunk):
            span = slice(start, start + chunk)
            logits = _chunk_logits(hidden[span], weight, inverse_temperature[span], rows)
            top = logits.amax(-1) if logits.shape[1] else logits.new_full(logits.shape[:1], -torch.inf)
            if group is not None:
                dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            local, mine = _local_labels(labels[span], first_row, rows)
            target = logits.gather(-1, local[:, None])[:, 0] * mine if logits.shape[1] else torch.zeros_like(top)
            weights = (logits - top[:, None]).exp_()
            sums = torch.stack([weights.sum(-1), (weights * logits).sum(-1), target])
            if group is not None:
                dist.all_reduce(sums, group=group)
            z = sums[0]
            normaliser[span] = top + z.log()
            logprobs[span] = sums[2] - normaliser[span]
            entropy[span] = normaliser[span] - sums[1] / z
            if n <= chunk:  # one chunk: keep its probabilities, which costs no more than the chunk itself
                kept = weights.div_(z[:, None])
        ctx.save_for_backward(hidden, weight, labels, inverse_temperature, normaliser)
        ctx.first_row, ctx.rows, ctx.group, ctx.chunk, ctx.kept = first_row, rows, group, chunk, kept
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, labels, inverse_temperature, normaliser = ctx.saved_tensors
        rows = ctx.rows
        d_hidden = torch.empty_like(hidden)
        # fp32 over chunks: bf16 would lose the small contributions of late chunks.
        d_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        for start in range(0, hidden.shape[0], ctx.chunk):
            span = slice(start, start + ctx.chunk)
            if ctx.kept is not None:
                p = ctx.kept
            else:
                logits = _chunk_logits(hidden[span], weight, inverse_temperature[span], rows)
                p = (logits - normaliser[span, None]).exp_()
            # d logp / d logits = onehot - p, times the temperature's factor
            scale = gradient[span] * inverse_temperature[span]
            d_logits = p * -scale[:, None]
            if rows:
                local, mine = _local_labels(labels[span], ctx.first_row, rows)
                d_logits.scatter_add_(-1, local[:, None], (scale * mine)[:, None])
            d_logits = d_logits.to(hidden.dtype)
            d_hidden[span] = d_logits @ weight[:rows]
            d_weight[:rows] += d_logits.t() @ hidden[span]
        ctx.kept = None
        if ctx.group is not None:
            dist.all_reduce(d_hidden, group=ctx.group)
        return d_hidden, d_weight.to(weight.dtype), None, None, None, None, None, None


def _chunk_logits(hidden: Tensor, weight: Tensor, inverse_temperature: Tensor, rows: int) -> Tensor:
    return (hidden @ weight[:rows].t()).float().mul_(inverse_temperature[:, None])


def _local_labels(labels: Tensor, first_row: int, rows: int) -> tuple[Tensor, Tensor]:
    """Labels as rows of this rank's shard, and 1 where they are in it."""
    mine = (labels >= first_row) & (labels < first_row + rows)
    return torch.where(mine, labels - first_row, 0), mine.float()


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    inverse_temperature: Tensor | None = None,
    *,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label and entropy of each next-token distribution.

    Args:
        hidden: final hidden states [n, h].
        weight: this tensor rank's rows of the output layer [v_local, h]; rows past `vocab_size` are padding and get
            no probability.
        labels: next tokens [n].
        inverse_temperature: 1/T per token [n]; None means 1.
        vocab_size: true size of the vocabulary.
        group: tensor-parallel group over which the vocabulary is split, or None.
        chunk: tokens whose logits are held at once.
    Returns:
        (log-probabilities [n], entropies in nats [n]), fp32; the second carries no gradient.
    """
    rank, size = (dist.get_rank(group), dist.get_world_size(group)) if group is not None else (0, 1)
    if size == 1:
        group = None
    first_row = rank * weight.shape[0]
    rows = max(0, min(weight.shape[0], vocab_size - first_row))
    if inverse_temperature is None:
        inverse_temperature = torch.ones(hidden.shape[0], device=hidden.device)
    return _TokenLogProbs.apply(hidden, weight, labels, inverse_temperature, first_row, rows, group, chunk)
