"""Score answers with reasoning-gym. Runs in the workers of :class:`bridge_mcore.rewards.gym.GymReward`.

Some of its scorers evaluate what the model wrote (`countdown` gives it to sympy's parser, which is `eval`). Those that
are known to get plain expressions only (:data:`bridge_mcore.rewards.gym.EVALUATED`). And before the first answer the
worker gives up, for good, what scoring does not need: network, new processes, files other than Python's libraries
(:func:`bridge_mcore.rewards.sandbox.confine_self`, as far as the kernel has the means).
"""

from __future__ import annotations

import math
from typing import Any

from bridge_mcore.rewards.box.values import decode
from bridge_mcore.rewards.sandbox import confine_self

_scorers: dict[str, Any] = {}
_confined = False


def warm_up() -> None:
    """Import the package before any answer is timed: it takes seconds."""
    import reasoning_gym  # noqa: F401


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The score of ``job["answer"]`` for ``job["entry"]`` of ``job["dataset"]``, a number from 0 to 1."""
    global _confined
    if not _confined:
        confine_self()
        _confined = True
    import reasoning_gym

    name = job["dataset"]
    if name not in _scorers:
        _scorers[name] = reasoning_gym.get_score_answer_fn(name)
    score = float(_scorers[name](job["answer"], decode(job["entry"])))
    if not math.isfinite(score):
        raise ValueError(f"the scorer of {name} gave {score}")
    return {"score": score}
