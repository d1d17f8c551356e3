"""RL-zero: reinforcement learning straight from the base model (the paper's Eq. 2)."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_mcore.methods.base import RL, THETA, Method, Pass


@dataclass
class RLZero(Method):
    def passes(self, step: int) -> list[Pass]:
        return [Pass(THETA, {RL: 1.0}, into={THETA: 1.0}, update=(THETA,))]
