"""SFT: maximise the log-likelihood of expert traces (the paper's Eq. 1). No adapter, no auxiliary copy."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_mcore.methods.base import SFT, THETA, Method, Pass


@dataclass
class SupervisedFineTuning(Method):
    def passes(self, step: int) -> list[Pass]:
        return [Pass(THETA, {SFT: 1.0}, into={THETA: 1.0}, update=(THETA,))]
