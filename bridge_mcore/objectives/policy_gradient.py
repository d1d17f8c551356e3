"""The RL objective per token: clipped surrogate (PPO, arXiv 1707.06347 Eq. 7) minus a KL estimate."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logprobs: Tensor, behaviour: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1-ε_low, 1+ε_high) A) with r = π(token) / behaviour(token), for each token.

    Args:
        logprobs: log π of the tokens, with gradient. Any shape.
        behaviour: log-probabilities under the policy that sampled them; same shape.
        advantages: same shape.
    Returns:
        (surrogate, 1 where the clip cut the gradient off), same shape.
    """
    ratio = (logprobs - behaviour).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.minimum(unclipped, clipped), (clipped < unclipped).detach()


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """The low-variance estimate of KL(π ‖ π_ref) per token: e^d - d - 1 with d = log π_ref - log π.

    Source: Schulman, "Approximating KL divergence" (2020); its gradient is that of the estimate itself, as in GRPO.
    """
    d = reference - logprobs
    return d.exp() - d - 1
