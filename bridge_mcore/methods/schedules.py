"""Values over steps: λ (Eq. 7 anneals it from small to large) and learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable

from bridge_mcore.config.schema import Schedule

Value = Callable[[int], float]


def schedule(setting: float | Schedule, total_steps: int) -> Value:
    """A function of the step (from 0). Linear and cosine schedules go from start to end over `steps` and stay there."""
    if not isinstance(setting, Schedule):
        return lambda step: float(setting)
    if setting.kind == "constant":
        value = float(setting.value if setting.value is not None else setting.start or 0.0)
        return lambda step: value
    start, end = float(setting.start or 0.0), float(setting.end or 0.0)
    last = max((setting.steps or total_steps) - 1, 1)

    def at(step: int) -> float:
        done = min(step / last, 1.0)
        share = done if setting.kind == "linear" else (1 - math.cos(math.pi * done)) / 2
        return start + (end - start) * share

    return at


def rate_factor(kind: str, warmup_steps: int, total_steps: int) -> Value:
    """Factor of a learning rate at a step: linear warm-up from 1/warmup, then constant, linear or cosine decay."""

    def at(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]

    return at
