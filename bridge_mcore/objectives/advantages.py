"""Group-relative advantages (GRPO: Shao et al., 2024, arXiv 2402.03300, section 4.1.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def group_relative(rewards: Tensor, divide_by_std: bool = True, epsilon: float = 1e-6) -> Tensor:
    """Advantages of several answers to each prompt: reward minus the group's mean, over its standard deviation.

    Args:
        rewards: [groups, samples]. NaN marks a sample without a verdict: it takes no part in the group's statistics
            and gets advantage 0.
        divide_by_std: False leaves the centred reward (Dr. GRPO, arXiv 2503.20783).
        epsilon: added to the (population) standard deviation.
    Returns:
        [groups, samples]; 0 throughout a group whose rewards are all equal.
    """
    known = ~rewards.isnan()
    count = known.sum(1, keepdim=True).clamp(min=1)
    filled = torch.where(known, rewards, 0.0)
    mean = filled.sum(1, keepdim=True) / count
    centred = torch.where(known, filled - mean, 0.0)
    if not divide_by_std:
        return centred
    std = (centred.pow(2).sum(1, keepdim=True) / count).sqrt()
    return centred / (std + epsilon)


def with_signal(rewards: Tensor) -> Tensor:
    """True for each group of rewards [groups, samples] (NaN left out) in which they differ; others teach nothing."""
    low = torch.where(rewards.isnan(), torch.inf, rewards).amin(1)
    high = torch.where(rewards.isnan(), -torch.inf, rewards).amax(1)
    return high > low
