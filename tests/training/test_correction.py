"""Importance sampling between engine and trainer: factors, masks, and the gap that is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import Policy, build_policy
from bridge_mcore.training.step import Updater
from tests.models import save_tiny

LOW, HIGH = 0.8, 1.25


@pytest.fixture(scope="module")
def parts(world: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, PassRunner, Config]:
    platform, _ = world
    directory = tmp_path_factory.mktemp("model")
    save_tiny("llama", directory)
    config = Config.model_validate({"model": {"path": directory}, "objective": {"kl_coefficient": 0}})
    policy = build_policy(config, platform, Path(directory), adapter=True, auxiliary=True, reference=False)
    return policy, PassRunner(policy, config.objective, 256), config


def updater_of(parts: tuple[Policy, PassRunner, Config], correction: str, gap: float | None = None) -> Updater:
    policy, runner, config = parts
    rollout = config.rollout.model_copy(update={"correction": correction, "correction_range": (LOW, HIGH)})
    return Updater(policy, runner, config.auxiliary, rollout, gap)


def rollouts(runner: PassRunner, seed: int, noise: float) -> tuple[list[Sample], list[np.ndarray]]:
    """Samples whose engine log-probabilities are the trainer's plus noise; and the trainer's own."""
    generator = np.random.default_rng(seed)
    samples = [
        Sample(RL, tuple(map(int, generator.integers(0, 120, 14))), 4, float(a)) for a in generator.normal(size=5)
    ]
    scored = [v.numpy() for v in runner.score(samples)]
    for sample, values in zip(samples, scored, strict=True):
        sample.behaviour = values + noise * generator.normal(size=len(values)).astype(np.float32)
    return samples, scored


@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_factors(parts: tuple[Policy, PassRunner, Config], kind: str, seed: int) -> None:
    samples, scored = rollouts(parts[1], seed, noise=0.4)
    engine = [np.array(s.behaviour, dtype=np.float64) for s in samples]
    metrics = updater_of(parts, kind).correct([*samples, Sample(SFT, (1, 2, 3), 1)])
    cut = total = 0
    for sample, before, trainer in zip(samples, engine, scored, strict=True):
        ratio = np.exp(trainer.astype(np.float64) - before)
        inside = (ratio >= LOW) & (ratio <= HIGH)
        expected = np.minimum(ratio, HIGH) if kind == "truncated" else np.where(inside, ratio, 0)
        assert np.abs(np.asarray(sample.correction) - expected).max() <= 1e-6
        assert np.array_equal(np.asarray(sample.behaviour), trainer), "clipping must see only what training changes"
        cut += int((ratio > HIGH).sum() if kind == "truncated" else (~inside).sum())
        total += len(ratio)
    difference = np.concatenate([t - e for t, e in zip(scored, engine, strict=True)])
    assert metrics["correction_cut"] == pytest.approx(cut / total) and cut > 0
    assert metrics["logprob_gap_mean"] == pytest.approx(np.abs(difference).mean(), rel=1e-6)
    assert metrics["logprob_gap_max"] == pytest.approx(np.abs(difference).max(), rel=1e-6)
    assert metrics["probability_ratio"] == pytest.approx(np.exp(difference).mean(), rel=1e-6)
    k3 = (np.exp(difference) - difference - 1).mean()
    assert metrics["logprob_gap_k3"] == pytest.approx(k3, rel=1e-5)


@pytest.mark.parametrize("kind", ["truncated", "masked"])
def test_the_gradient_is_that_of_the_weighted_surrogate(
    parts: tuple[Policy, PassRunner, Config], kind: str, seed: int
) -> None:
    """Σ factor · A · ∇ log π / tokens, against autograd on the model itself. Tolerance: 1e-5 of the largest entry."""
    policy, runner, _ = parts
    samples, _ = rollouts(runner, seed, noise=0.4)
    updater_of(parts, kind).correct(samples)
    policy.optimizer.release_gradients()
    runner.run(samples, {RL: 1.0})
    policy.optimizer.gather_gradients()
    (chunk,) = policy.chunks
    named = dict(chunk.named_parameters())
    name = "decoder.layers.1.mlp.linear_fc2.weight"
    found = named[name].main_grad.clone()
    policy.optimizer.release_gradients()
    tokens = sum(s.response_length for s in samples)
    objective = torch.zeros(())
    for s in samples:
        row, n = torch.tensor([s.tokens]), len(s.tokens)
        labels = row.roll(-1, 1)
        mask = torch.zeros(1, n, dtype=torch.bool)
        mask[0, s.prompt_length - 1 : n - 1] = True
        logprobs = chunk(row, labels=labels, mask=mask)[0, 0][s.prompt_length - 1 : n - 1]
        objective = objective - (torch.from_numpy(np.asarray(s.correction)) * s.advantage * logprobs).sum() / tokens
    (expected,) = torch.autograd.grad(objective, named[name])
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_none_changes_nothing_and_a_gap_stops(parts: tuple[Policy, PassRunner, Config], seed: int) -> None:
    samples, _ = rollouts(parts[1], seed, noise=0.4)
    before = [np.array(s.behaviour) for s in samples]
    assert updater_of(parts, "none", gap=1e-3).correct(samples) == {}
    assert all(s.correction is None for s in samples)
    assert all(np.array_equal(np.asarray(s.behaviour), b) for s, b in zip(samples, before, strict=True))
    with pytest.raises(TrainingError, match="rollouts do not come from the policy that is trained"):
        updater_of(parts, "truncated", gap=1e-3).correct(samples)
