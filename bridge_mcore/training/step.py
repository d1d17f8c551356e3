"""One update: the method's passes over one batch, and the optimizer steps that they ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from bridge_mcore.config import schema
from bridge_mcore.data.sample import RL, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.methods.base import THETA, THETA_HAT, Pass, W
from bridge_mcore.slots.optimizer import ADAPTER, BASE, Stepped, gradients_of
from bridge_mcore.training.passes import PassRunner
from bridge_mcore.training.policy import REFERENCE, Policy


class Updater:
    """Runs pass lists. Holds between passes only what w has received so far (adapters are small)."""

    def __init__(
        self,
        policy: Policy,
        runner: PassRunner,
        auxiliary: schema.Auxiliary,
        rollout: schema.Rollout | None = None,
        max_logprob_gap: float | None = None,
    ) -> None:
        """rollout: how log-probabilities of engine and trainer are reconciled; None: they are taken as equal."""
        self.policy = policy
        self.runner = runner
        self.auxiliary = auxiliary
        self.rollout = rollout
        self.max_logprob_gap = max_logprob_gap
        self.held: list[torch.Tensor] | None = None
        #: groups that the current iteration has stepped so far
        self.stepped: list[str] = []

    def update(
        self,
        passes: Sequence[Pass],
        samples: Sequence[Sample],
        alpha: float,
        beta: float,
        own: Sequence[Sample] | None = None,
    ) -> dict[str, float]:
        """One iteration. All gradients are of the values at its start, unless a pass list steps in between.

        Args:
            samples: the step's traces and rollouts, the same on every rank.
            alpha, beta: learning rates of θ and θ̂, and of w.
            own: rollouts of π(θ̂, w) itself, for `auxiliary.rollouts: own`.
        Returns:
            metrics of the step. Raises TrainingError, before any weight has changed by this pass, for NaN.
        """
        policy = self.policy
        policy.optimizer.set_rates(alpha, beta)
        metrics: dict[str, float] = {}
        self.stepped = []
        # Only before θ's first step of the iteration must the engine and the trainer agree.
        self.first_theta = next((i for i, p in enumerate(passes) if p.slot == THETA), -1)
        for index, p in enumerate(passes):
            policy.optimizer.release_gradients()
            if p.start_from is not None:
                assert p.start_from == THETA
                policy.slots[p.slot].copy_live()
            batch = self._samples_of(p, samples, own)
            with policy.live(p.slot):
                computed = self.runner.run(batch, p.objective)
                self._check(computed, p, index)
                policy.optimizer.gather_gradients()
                self._receive(p)
                # All that steps after this pass is checked before any of it does.
                stepping = [BASE] * (p.slot in p.update) + [ADAPTER] * (W in p.update)
                norms = {group: policy.optimizer.check_finite(group) for group in stepping}
                if BASE in norms:
                    self._record(metrics, p.slot, self._step_base(p, norms[BASE]))
            if ADAPTER in norms:
                self._record(metrics, W, policy.optimizer.step(ADAPTER, norms[ADAPTER]))
            if ADAPTER in norms or (BASE in norms and p.slot == THETA):  # a slot that goes back publishes by itself
                policy.optimizer.publish()
            self._collect(metrics, p, computed)
        policy.optimizer.release_gradients()
        if "j_rl" in metrics and "j_rl_auxiliary" in metrics:
            metrics["gain"] = metrics["j_rl"] - metrics["j_rl_auxiliary"]
        return metrics

    def fill_reference(self, samples: Sequence[Sample]) -> None:
        """Take the reference policy's log-probabilities of the rollouts, if the KL term needs them."""
        if REFERENCE in self.policy.slots:
            with self.policy.live(REFERENCE):
                self.runner.fill_reference([s for s in samples if s.component == RL])

    def correct(self, samples: Sequence[Sample], own: Sequence[Sample] | None = None) -> dict[str, float]:
        """Importance sampling between engine and trainer (rollout.correction), before the step's passes.

        Each rollout's behaviour log-probabilities become the trainer's own, under the weights that are live now, so
        that clipping sees only what training changes; the surrogate of each token gets a factor from the ratio
        ρ = π_trainer / π_engine: min(ρ, high) (truncated) or ρ inside [low, high] and 0 outside (masked). Returns the
        gap as it was.

        Sources: truncated importance sampling, Yao et al., "Your efficient RL framework secretly brings you off-policy
        RL training" (2025); masking, IcePop (Ling team, 2025).
        """
        if self.rollout is None or self.rollout.correction == "none":
            return {}
        rolled = [s for s in samples if s.component == RL]
        metrics = self._correct(rolled, self.runner.score(rolled))
        if own:
            with self.policy.live(THETA_HAT):
                scored = self.runner.score(own)
            self._correct(own, scored)
        gap = metrics.get("logprob_gap_mean", 0.0)
        if self.max_logprob_gap is not None and gap > self.max_logprob_gap:
            raise TrainingError(self._too_far(gap, metrics["logprob_gap_max"]))
        return metrics

    def _correct(self, samples: Sequence[Sample], scored: Sequence[torch.Tensor]) -> dict[str, float]:
        assert self.rollout is not None
        low, high = self.rollout.correction_range
        differences, kept = [], 0.0
        for sample, logprobs in zip(samples, scored, strict=True):
            trainer = logprobs.double().numpy()
            difference = trainer - np.asarray(sample.behaviour, dtype=np.float64)
            ratio = np.exp(np.clip(difference, -20, 20))
            if self.rollout.correction == "truncated":
                factor = np.minimum(ratio, high)
                kept += float((ratio <= high).sum())
            else:
                inside = (ratio >= low) & (ratio <= high)
                factor = np.where(inside, ratio, 0.0)
                kept += float(inside.sum())
            sample.behaviour, sample.correction = trainer.astype(np.float32), factor.astype(np.float32)
            differences.append(difference)
        if not differences:
            return {}
        all_ = np.concatenate(differences)
        ratios = np.exp(np.clip(all_, -20, 20))
        return {
            "logprob_gap_mean": float(np.abs(all_).mean()),
            "logprob_gap_max": float(np.abs(all_).max()),
            "logprob_gap_k3": float((ratios - all_ - 1).mean()),
            "probability_ratio": float(ratios.mean()),
            "correction_cut": 1.0 - kept / len(all_),
        }

    def _samples_of(self, p: Pass, samples: Sequence[Sample], own: Sequence[Sample] | None) -> list[Sample]:
        if p.slot == THETA:
            return list(samples)
        chosen = samples if own is None else own
        return [s for s in chosen if s.component in p.components()]

    def _step_base(self, p: Pass, norm: float) -> Stepped:
        if p.slot == THETA_HAT and self.auxiliary.optimizer == "sgd":
            return self.policy.optimizer.ascend(BASE, norm)
        return self.policy.optimizer.step(BASE, norm)

    def _receive(self, p: Pass) -> None:
        """Scale this pass's gradients by its `into` factors; add up what w receives until it steps."""
        pairs = self.policy.optimizer.pairs
        if p.slot in p.update and p.into.get(p.slot, 0.0) != 1.0:
            torch._foreach_mul_(gradients_of(pairs[BASE]), p.into.get(p.slot, 0.0))
        adapters = gradients_of(pairs[ADAPTER])
        if not adapters or W not in p.into:
            return
        if p.into[W] != 1.0:
            torch._foreach_mul_(adapters, p.into[W])
        if self.held is not None:
            torch._foreach_add_(adapters, self.held)
        self.held = None if W in p.update else [g.clone() for g in adapters]

    def _record(self, metrics: dict[str, float], group: str, stepped: Stepped) -> None:
        self.stepped.append(group)
        self.policy.changes[group] += 1
        metrics[f"grad_norm_{group}"] = stepped.grad_norm
        metrics[f"update_norm_{group}"] = stepped.update_norm

    def _check(self, computed: dict[str, float], p: Pass, index: int) -> None:
        bad = [f"J_{c.upper()} = {computed[f'j_{c}']}" for c in p.components() if not math.isfinite(computed[f"j_{c}"])]
        if bad:
            raise TrainingError(f"pass {index + 1} (slot {p.slot}): {', '.join(bad)}, which is not finite")
        gap = computed["logprob_gap_mean"]
        if (
            p.slot == THETA
            and index == self.first_theta
            and self.max_logprob_gap is not None
            and gap > self.max_logprob_gap
        ):
            raise TrainingError(self._too_far(gap, computed["logprob_gap_max"]))

    def _too_far(self, gap: float, most: float) -> str:
        return (
            f"the engine's log-probabilities differ from the trainer's by {gap:.3g} on average (at most {most:.3g}); "
            "rollouts do not come from the policy that is trained. If this is expected (bf16, another kernel), raise "
            f"rollout.max_logprob_gap (now {self.max_logprob_gap})"
        )

    @staticmethod
    def _collect(metrics: dict[str, float], p: Pass, computed: dict[str, float]) -> None:
        if p.slot == THETA_HAT:
            # With lookahead the last θ̂ pass is the one at θ̂; an earlier one was at θ.
            metrics["j_rl_auxiliary"] = computed["j_rl"]
            return
        finite = {k: v for k, v in computed.items() if not math.isnan(v) and k != "surrogate"}
        metrics.update(finite)
