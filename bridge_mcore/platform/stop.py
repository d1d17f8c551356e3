"""Ctrl-C and SIGTERM end a run at its next safe point, on all ranks at the same step."""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist


class StopRequest:
    """Inside this context a first SIGINT or SIGTERM is remembered; a second one interrupts at once.

    `agree` is collective: it tells every rank whether any of them was asked to stop.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.agreed = False

    @property
    def exit_code(self) -> int:
        """Shell convention: 128 + signal."""
        return 128 + (self.signal or signal.SIGTERM)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = signum
        print("stopping after this step, with a checkpoint (once more to stop at once, without)", flush=True)

    def __enter__(self) -> StopRequest:
        self._previous = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self._previous.items():
            signal.signal(s, handler)

    def agree(self) -> bool:
        """True on every rank once any rank was asked to stop."""
        if not self.agreed:
            self.agreed = bool(self.signal)
            if dist.is_initialized() and dist.get_world_size() > 1:
                device = "cpu" if dist.get_backend() == "gloo" else torch.cuda.current_device()
                flag = torch.tensor([int(self.agreed)], device=device)
                dist.all_reduce(flag, op=dist.ReduceOp.MAX)
                self.agreed = bool(flag.item())
        return self.agreed
