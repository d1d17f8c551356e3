"""A method is a list of passes for each step (DESIGN idea 1). Nothing here knows megatron or an engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge_mcore.config.schema import Config
from bridge_mcore.data.sample import RL, SFT
from bridge_mcore.methods.schedules import Value, schedule

__all__ = ["RL", "SFT", "THETA", "THETA_HAT", "W", "Method", "Pass"]

THETA, THETA_HAT, W = "theta", "theta_hat", "w"


@dataclass(frozen=True)
class Pass:
    """One forward-backward over a batch.

    Attributes:
        slot: whose base weights are live (theta or theta_hat).
        objective: coefficient of each component, to be ascended: {"sft": 1-λ, "rl": λ}.
        into: group -> factor with which it receives this pass's gradient. A group that several passes feed adds up.
        update: groups that step after this pass, with all that they have received since their last step.
        start_from: slot whose values this slot takes over before the pass (Eq. 10's lookahead).
    """

    slot: str
    objective: Mapping[str, float]
    into: Mapping[str, float]
    update: tuple[str, ...] = ()
    start_from: str | None = None

    def components(self) -> frozenset[str]:
        """Components that count: those with a coefficient other than 0."""
        return frozenset(name for name, c in self.objective.items() if c != 0)


@dataclass
class Method(ABC):
    """What a run does at each step. Subclasses are one file each."""

    config: Config
    uses_adapter: bool = False
    uses_auxiliary: bool = False
    #: λ weighs its objectives
    uses_lam: bool = False
    lam: Value = field(init=False)

    def __post_init__(self) -> None:
        self.lam = schedule(self.config.method.lam, self.config.training.steps)

    @abstractmethod
    def passes(self, step: int) -> list[Pass]:
        """The passes of `step` (from 0), in order."""

    def components(self, step: int) -> frozenset[str]:
        """Which of sft and rl `step` needs data for."""
        return frozenset().union(*(p.components() for p in self.passes(step)))
