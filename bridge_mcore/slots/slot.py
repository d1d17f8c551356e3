"""θ̂ and the reference policy as values that visit the one live model (DESIGN idea 2).

θ̂ is a second value of the base masters with optimizer state of its own: no second model, no gradient buffer, and with
DistributedOptimizer only this rank's shard of it. The reference is weights only, in the live dtype. `swapped` makes a
slot the live one and puts θ back. A slot may wait in (pinned) host memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from bridge_mcore.platform.device import Platform
from bridge_mcore.slots.optimizer import BASE, GroupedOptimizer, Master

Offload = Literal["none", "pinned_cpu"]


class Slot:
    """A second value of the base parameters: fp32 masters, and with `moments` an optimizer state.

    `values[i]` belongs to the i-th base master of the optimizer, on this rank.
    """

    def __init__(
        self, optimizer: GroupedOptimizer, moments: bool, platform: Platform, offload: Offload = "none"
    ) -> None:
        self.optimizer = optimizer
        self.platform = platform
        self.moments = moments
        self.offload = offload == "pinned_cpu"
        self.values: list[Tensor] = [self._kept(self._source(m)) for m in self.masters]
        self.states: list[dict] = [{} for _ in self.values]
        #: `step` counts that apex and TE keep per parameter group instead of per parameter
        self.group_steps: dict[int, int] = {}

    @property
    def masters(self) -> list[Master]:
        """What `values` are second values of."""
        return self.optimizer.pairs[BASE]

    def _source(self, m: Master) -> Tensor:
        return m.value.detach()

    def _kept(self, tensor: Tensor) -> Tensor:
        """A copy where this slot waits."""
        if not self.offload:
            return tensor.clone()
        kept = self.platform.host_memory(tensor)
        kept.copy_(tensor)
        return kept

    @torch.no_grad()
    def copy_live(self) -> None:
        """Take over the live θ's values (the moments stay this slot's own)."""
        for value, m in zip(self.values, self.masters, strict=True):
            value.copy_(self._source(m))

    def _exchange_tensor(self, m: Master, value: Tensor) -> Tensor:
        """Put `value` into the master and return what it held, for this slot to keep."""
        if self.offload or (self.optimizer.in_place and m.start is not None):
            # Host memory has another address, and a shard of the live buffer must stay in it.
            _exchange_contents(m.value, value)
            return value
        kept, m.value.data = m.value.data, value
        return kept

    def _exchange_state(self, m: Master, mine: dict) -> dict:
        state = self.optimizer.state(m)
        theirs = dict(state)
        state.clear()
        if not self.offload:
            state.update(mine)
            return theirs
        kept: dict[str, Any] = {}
        for key, there in theirs.items():
            here = mine.get(key)
            if _is_moment(there) and _is_moment(here):  # both have stepped: no memory changes hands
                _exchange_contents(there, here)
                state[key], kept[key] = there, here
            else:  # step counters are the host's already
                kept[key] = self._kept(there) if _is_moment(there) else there
        for key, here in mine.items():
            if key not in state:
                state[key] = here.to(m.value.device, copy=True) if _is_moment(here) else here
        return kept

    @torch.no_grad()
    def _exchange(self) -> None:
        """Let this slot and θ change places, in the masters and moments of this rank; `publish` makes it live."""
        optimizer = self.optimizer
        optimizer.settle()
        for i, m in enumerate(self.masters):
            self.values[i] = self._exchange_tensor(m, self.values[i])
            if self.moments:
                self.states[i] = self._exchange_state(m, self.states[i])
        if self.moments:
            for index, group in enumerate(optimizer.groups((BASE,))):
                if "step" in group or index in self.group_steps:
                    mine = self.group_steps.get(index, 0)
                    self.group_steps[index], group["step"] = group.get("step", 0), mine
        if self.offload:
            self.platform.synchronize()  # what went to the host may be read there now

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside: the live base parameters (and their optimizer state) are this slot's. Collective.

        An exception may be this rank's alone, so θ is put back without the other ranks: its masters and moments, and
        what this rank can make live of them, which with sharded masters is its own part. Who goes on after it calls
        the optimizer's `publish` on every rank.
        """
        self._exchange()
        self.optimizer.publish()
        try:
            yield
        except BaseException:
            self._exchange()
            self.optimizer.publish(gather=False)
            raise
        self._exchange()
        self.optimizer.publish()

    def nbytes(self) -> int:
        """Bytes this slot keeps on this rank while it is not swapped in."""
        tensors = [*self.values, *(v for s in self.states for v in s.values() if torch.is_tensor(v))]
        return sum(t.nbytes for t in tensors)


class WeightsSlot(Slot):
    """The reference policy: weights only, never stepped.

    In bf16 it keeps 2 bytes a parameter (over the data-parallel ranks, with DistributedOptimizer): it is written into
    the live weights, and the masters put θ back. In fp32 the live weights are the masters, and it changes places with
    them as any slot does.
    """

    def __init__(self, optimizer: GroupedOptimizer, platform: Platform, offload: Offload = "none") -> None:
        super().__init__(optimizer, moments=False, platform=platform, offload=offload)

    def _source(self, m: Master) -> Tensor:
        return m.value.detach() if self.optimizer.in_place else m.of(m.live.detach())

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Inside: the live base parameters are this slot's; nothing may be stepped. Else as `Slot.swapped`."""
        if self.optimizer.in_place:
            with super().swapped():
                yield
            return
        self.optimizer.settle()
        with torch.no_grad():
            for m, value in zip(self.masters, self.values, strict=True):
                m.of(m.live.data).copy_(value, non_blocking=True)
        self.optimizer.sync_live()
        try:
            yield
        except BaseException:
            self.optimizer.publish(gather=False)
            raise
        self.optimizer.publish()


def _is_moment(value: object) -> TypeGuard[Tensor]:
    """Whether an entry of an optimizer's state is a tensor like the parameter, and no step count."""
    return torch.is_tensor(value) and value.dim() > 0


def _exchange_contents(a: Tensor, b: Tensor) -> None:
    """Let two tensors, maybe of two devices, change contents. Takes one more tensor of this size on `a`'s device.

    Queued on one stream: who reads on the host waits for it.
    """
    arriving = b.to(a.device, non_blocking=True, copy=True)  # on one device too it must be a copy
    b.copy_(a, non_blocking=True)
    a.copy_(arriving)
