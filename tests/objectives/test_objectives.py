"""Objectives against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from bridge_mcore.objectives.advantages import group_relative, with_signal
from bridge_mcore.objectives.policy_gradient import clipped_surrogate, k3


def test_advantages_are_standardised_within_each_group(seed):
    rewards = torch.rand(7, 5, generator=torch.Generator().manual_seed(seed))
    got = group_relative(rewards)
    want = (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, unbiased=False, keepdim=True)
    assert torch.allclose(got, want, atol=1e-4)
    assert torch.allclose(group_relative(rewards, divide_by_std=False), rewards - rewards.mean(1, keepdim=True))
    # ±1 instead of 1/0 changes nothing (METHODS.md)
    binary = (rewards > 0.5).float()
    assert torch.allclose(group_relative(binary), group_relative(2 * binary - 1), atol=1e-5)


def test_a_group_of_equal_rewards_teaches_nothing():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    assert (group_relative(rewards)[0] == 0).all()
    assert with_signal(rewards).tolist() == [False, True]


def test_a_sample_without_a_verdict_is_left_out_of_its_group():
    rewards = torch.tensor([[1.0, math.nan, 0.0]])
    assert group_relative(rewards)[0].tolist() == pytest.approx([1.0, 0.0, -1.0], abs=1e-4)
    assert with_signal(torch.tensor([[1.0, math.nan]])).tolist() == [False]


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # clipped above: no more gain
        (0.5, 2.0, 1.0, 1.0),  # below, but good: not clipped
        (0.5, -2.0, -1.8, 0.0),  # clipped below (ε_low 0.1)
        (1.5, -2.0, -3.0, -3.0),  # above and bad: not clipped
    ],
)
def test_clipped_surrogate(ratio, advantage, value, gradient):
    logp = torch.tensor([math.log(ratio)], requires_grad=True)
    surrogate, clipped = clipped_surrogate(logp, torch.zeros(1), torch.tensor([advantage]), 0.1, 0.2)
    surrogate.sum().backward()
    assert surrogate.item() == pytest.approx(value, rel=1e-6)
    assert logp.grad.item() == pytest.approx(gradient, rel=1e-6)
    assert bool(clipped) == (gradient == 0.0)


def test_k3_is_an_unbiased_estimate_of_the_kl(seed):
    """Mean of k3 under π is KL(π ‖ ref), summed exactly over a small vocabulary."""
    g = torch.Generator().manual_seed(seed)
    p, ref = (torch.randn(9, generator=g, dtype=torch.float64).log_softmax(0) for _ in range(2))
    assert (p.exp() * k3(p, ref)).sum().item() == pytest.approx((p.exp() * (p - ref)).sum().item(), abs=1e-12)
    assert (k3(p, ref) >= 0).all() and (k3(p, p) == 0).all()
