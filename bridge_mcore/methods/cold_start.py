"""Cold-start (the paper's section 2.1): SFT for `method.sft_steps`, then RL. The stages do not interact."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_mcore.methods.base import RL, SFT, THETA, Method, Pass


@dataclass
class ColdStart(Method):
    def passes(self, step: int) -> list[Pass]:
        steps = self.config.method.sft_steps or max(self.config.training.steps // 2, 1)
        component = SFT if step < steps else RL
        return [Pass(THETA, {component: 1.0}, into={THETA: 1.0}, update=(THETA,))]
