"""The unit of training: one sequence of tokens, and what it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

#: The components of an objective.
SFT, RL = "sft", "rl"


@dataclass
class Sample:
    """One sequence and what it is for.

    Attributes:
        component: "sft" (an expert trace) or "rl" (a rollout).
        tokens: prompt and response ids.
        prompt_length: ids of the prompt; the response is what is learned from.
        advantage: of a rollout.
        behaviour: log-probability of each response token under the policy that sampled it (rollouts).
        temperature: at which it was sampled; the trainer's log-probabilities are taken at the same one.
        reference: log-probability of each response token under the reference policy, once known.
        correction: factor of each response token's surrogate; None means 1 (rollout.correction).
    """

    component: str
    tokens: Sequence[int]
    prompt_length: int
    advantage: float = 0.0
    behaviour: Sequence[float] | np.ndarray | None = None
    temperature: float = 1.0
    reference: Tensor | None = field(default=None, repr=False)
    correction: np.ndarray | None = field(default=None, repr=False)

    @property
    def response_length(self) -> int:
        """Tokens that are learned from."""
        return len(self.tokens) - self.prompt_length
