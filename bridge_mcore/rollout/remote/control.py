"""What ranks tell one another about servers: over gloo, with a time limit that outlasts any generation."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from megatron.core import parallel_state as mpu

T = TypeVar("T")

#: Ranks wait here while servers start and generate. A rank that dies breaks its connections, which is noticed at once.
_PATIENCE = timedelta(days=2)


class Control:
    """Collectives of small Python objects over all ranks, and within each replica (its tensor and pipeline ranks)."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._world: Any = None
        self._replica: Any = None
        self.leader_rank = self.rank
        if self.world > 1:
            self._world = dist.new_group(backend="gloo", timeout=_PATIENCE)
            mine = tuple(dist.get_process_group_ranks(mpu.get_model_parallel_group()))
            for ranks in sorted(set(self.gather(mine))):
                group = dist.new_group(list(ranks), backend="gloo", timeout=_PATIENCE)
                if ranks == mine:
                    self._replica, self.leader_rank = group, ranks[0]

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks to servers for its replica."""
        return self.rank == self.leader_rank

    @property
    def is_main(self) -> bool:
        """Rank 0, which says once what is said once."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on all ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._world)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)

    def replica(self, value: T) -> T:
        """The leader's value, on all ranks of its replica."""
        if self._replica is None or dist.get_world_size(self._replica) == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=self.leader_rank, group=self._replica)
        return box[0]
