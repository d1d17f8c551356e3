"""θ̂ and the reference policy as values that visit the one live model (DESIGN idea 2).

θ̂ is a second value of the base masters with optimizer state of its own. It has no gradient buffer and no model of its
own: `swapped` makes it the live one and puts θ back. The reference is weights only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from bridge_mcore.slots.optimizer import BASE, GroupedOptimizer


class Slot:
    """A second value of the base parameters: fp32 masters, and with `moments` an optimizer state.

    `values[i]` belongs to the i-th base master of the optimizer, on this rank.
    """

    def __init__(self, optimizer: GroupedOptimizer, moments: bool) -> None:
        self.optimizer = optimizer
        self.moments = moments
        self.values: list[Tensor] = [master.detach().clone() for master, _ in optimizer.pairs[BASE]]
        self.states: list[dict] = [{} for _ in self.values]
        #: `step` counts that apex and TE keep per parameter group instead of per parameter
        self.group_steps: dict[int, int] = {}

    @torch.no_grad()
    def copy_live(self) -> None:
        """Take over the live θ's values (the moments stay this slot's own)."""
        for value, (master, _) in zip(self.values, self.optimizer.pairs[BASE], strict=True):
            value.copy_(master)

    @torch.no_grad()
    def _exchange(self) -> None:
        optimizer = self.optimizer
        for i, (master, _) in enumerate(optimizer.pairs[BASE]):
            master.data, self.values[i] = self.values[i], master.data
            if self.moments:
                state = optimizer.state(master)
                kept = dict(state)
                state.clear()
                state.update(self.states[i])
                self.states[i] = kept
        if self.moments:
            for index, group in enumerate(optimizer.groups((BASE,))):
                if "step" in group:
                    mine = self.group_steps.get(index, 0)
                    self.group_steps[index], group["step"] = group["step"], mine
        optimizer.publish()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside: the live base parameters (and their optimizer state) are this slot's."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def nbytes(self) -> int:
        """Bytes this slot keeps on this rank while it is not swapped in."""
        tensors = [*self.values, *(v for s in self.states for v in s.values() if torch.is_tensor(v))]
        return sum(t.nbytes for t in tensors)
