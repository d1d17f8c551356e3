"""Seeded sampling whose draws depend only on (seed, request, position).

A generator per batch would make an answer depend on what it is batched with, and on the layout. Here the uniform number
of each draw is a hash of its coordinates (SplitMix64: Steele, Lea and Flood, OOPSLA 2014), so that a request gives the
same answer alone, in any batch, on any rank and after a resume (up to ties that rounding of the logits can move).
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _splitmix(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniform(seed: int, keys: Tensor, position: int) -> Tensor:
    """fp64 numbers in [0, 1), one for each key [n] at a response position."""
    x = _splitmix(torch.full_like(keys, seed))
    x = _splitmix(x ^ keys)
    x = _splitmix(x ^ position)
    return _shift_right(x, 11).double() * 2.0**-53


def sample(logits: Tensor, draws: Tensor, temperature: float, top_p: float, top_k: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a token for each row and report its log-probability.

    Args:
        logits: fp32 [n, vocab].
        draws: uniform numbers [n], fp64.
        temperature: 0 takes the most likely token.
        top_p: sample from the smallest set of most likely tokens that holds this much probability.
        top_k: and only from this many most likely ones; 0: from all.
    Returns:
        (tokens [n], log-probabilities [n] fp32 under the whole distribution at `temperature`, or at 1 when greedy).
    """
    logprobs = torch.log_softmax(logits if temperature in (0.0, 1.0) else logits / temperature, -1)
    if temperature == 0.0:
        tokens = logits.argmax(-1)
    else:
        p = logprobs.double().exp_()
        if top_p < 1.0 or 0 < top_k < p.shape[-1]:
            ordered, order = p.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= top_p
            if top_k:
                outside[:, top_k:] = True
            p = p.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)
        cumulative = p.cumsum(-1)
        threshold = draws.to(p.device) * cumulative[:, -1]
        # First token whose cumulative probability exceeds the draw; it has probability > 0 because the sum grew there.
        tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=p.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]


def request_seed(seed: int, key: int) -> int:
    """A seed of one request for engines that take one, in [0, 2^31)."""
    return int(_splitmix(_splitmix(torch.tensor([seed])) ^ key)[0]) & (2**31 - 1)
