"""Verdicts on rollouts, reached once per data-parallel replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from megatron.core import parallel_state as mpu

from bridge_mcore.data.problem import Problem
from bridge_mcore.rewards.mixed import Rewards
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.thoughts import TAIL, opens_thought
from bridge_mcore.rewards.verdict import Verdict
from bridge_mcore.rollout.engine import Rollout
from bridge_mcore.rollout.stop_text import cut_at_text, without_stop

T = TypeVar("T")


def is_replica_first() -> bool:
    """True on the one rank of each data-parallel replica that talks to the outside."""
    return dist.get_rank(mpu.get_model_parallel_group()) == 0


def replica_broadcast(value: T) -> T:
    """The value of this replica's first rank, on all of its ranks."""
    group = mpu.get_model_parallel_group()
    if dist.get_world_size(group) == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group)
    return box[0]


class Judge:
    """Reads rollouts as text and has each problem's reward judge them."""

    def __init__(
        self,
        rewards: Rewards,
        decode: Callable[[Sequence[int]], str],
        noise: bool = True,
        stop_texts: Sequence[str] = (),
    ) -> None:
        """
        Args:
            decode: token ids to text, special tokens left out.
            noise: with the noise that the rewards may have.
            stop_texts: an answer is over before the first of them.
        """
        self.rewards, self.decode, self.noise, self.stop_texts = rewards, decode, noise, tuple(stop_texts)

    def read(self, rollout: Rollout) -> str:
        """A rollout as it is judged."""
        return without_stop(self.decode(rollout.tokens), self.stop_texts)

    def stopped(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Rollouts without what was sampled after a text that ends an answer."""
        return [cut_at_text(rollout, self.stop_texts, self.decode) for rollout in rollouts]

    def verify(
        self, problems: Sequence[Problem], rollouts: Sequence[Rollout], samples: Sequence[int] | None = None
    ) -> list[Verdict]:
        """Verdict of each rollout. Collective over a replica: its ranks must agree, even on a time-out.

        problems: of each rollout. samples: number of each among those to its problem.
        """
        verdicts: list[Verdict] = []
        if is_replica_first():
            attempts = self.attempts(problems, rollouts, samples)
            verdicts = self.rewards.judge([p.reward for p in problems], attempts, self.noise)
        return replica_broadcast(verdicts)

    def attempts(
        self, problems: Sequence[Problem], rollouts: Sequence[Rollout], samples: Sequence[int] | None = None
    ) -> list[Attempt]:
        """Rollouts as rewards see them."""
        numbers = [0] * len(rollouts) if samples is None else samples
        return [
            Attempt(p.answer, self.read(r), p.prompt, p.id, j, len(r.tokens), r.finished, self._opens_thought(r))
            for p, r, j in zip(problems, rollouts, numbers, strict=True)
        ]

    def _opens_thought(self, rollout: Rollout) -> bool:
        return opens_thought(self.decode(rollout.prompt[-TAIL:]))
