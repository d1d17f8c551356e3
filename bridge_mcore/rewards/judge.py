"""Verdicts on rollouts, reached once per data-parallel replica."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist
from megatron.core import parallel_state as mpu

from bridge_mcore.rewards.math import MathVerifier
from bridge_mcore.rewards.verdict import Verdict
from bridge_mcore.rollout.engine import Rollout

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
    """Reads rollouts as text and has the verifier compare them with the gold answers."""

    def __init__(self, verifier: MathVerifier, decode: Callable[[Sequence[int]], str]) -> None:
        """decode: token ids to text, special tokens left out."""
        self.verifier, self.decode = verifier, decode

    def verify(self, golds: Sequence[str], rollouts: Sequence[Rollout]) -> list[Verdict]:
        """Verdict of each rollout. Collective over a replica: its ranks must agree, even on a time-out."""
        verdicts: list[Verdict] = []
        if is_replica_first():
            pairs = [(gold, self.decode(r.tokens)) for gold, r in zip(golds, rollouts, strict=True)]
            verdicts = self.verifier.verify(pairs)
        return replica_broadcast(verdicts)
