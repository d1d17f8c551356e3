"""BRIDGE (the paper's Algorithm 2): θ follows the fused SFT + RL gradient, w the cooperative gain.

    θ  ascends (1-λ) J_SFT(θ, w) + λ J_RL(θ, w)                            Eq. (8),  line 10
    θ̂  ascends J_RL(θ̂, w)                                                 line 12
    w  ascends (1-λ) J_SFT(θ, w) + λ [J_RL(θ, w) - J_RL(θ̂, w)]             Eq. (11), line 14

All gradients are taken at the same iteration's values, so the order of the passes is free. θ̂ goes first: what its pass
leaves for w, -λ ∇_w J_RL(θ̂, w), is all that must be kept, and adapters are small. J_RL's gradient with respect to θ and
to w, and J_SFT's, come out of one forward-backward.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge_mcore.methods.base import RL, SFT, THETA, THETA_HAT, Method, Pass, W


@dataclass
class Bridge(Method):
    uses_adapter: bool = True
    uses_auxiliary: bool = True
    uses_lam: bool = True

    def passes(self, step: int) -> list[Pass]:
        lam = self.lam(step)
        joint = Pass(THETA, {SFT: 1 - lam, RL: lam}, into={THETA: 1.0, W: 1.0}, update=(THETA, W))
        if self.config.auxiliary.mode == "persistent":
            return [Pass(THETA_HAT, {RL: 1.0}, into={THETA_HAT: 1.0, W: -lam}, update=(THETA_HAT,)), joint]
        # Eq. (10): θ̂ = θ + α ∇_θ J_RL(θ, w), anew at each iteration; then w's gradient there.
        ahead = Pass(THETA_HAT, {RL: 1.0}, into={THETA_HAT: 1.0}, update=(THETA_HAT,), start_from=THETA)
        return [ahead, Pass(THETA_HAT, {RL: 1.0}, into={W: -lam}), joint]
