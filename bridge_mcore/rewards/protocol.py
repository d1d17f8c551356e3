"""What every reward is: something that says of an attempt at a problem whether it succeeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge_mcore.rewards.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Attempt:
    """One response to one problem.

    Attributes:
        gold: the problem's answer as text. What it holds is up to the reward: a formula, a letter, tests as JSON.
        response: the whole answer of the model as text, without special tokens.
        prompt: the question as text, before any template.
        id: of the problem (:func:`bridge_mcore.data.problem.problem_id`).
        sample: number of this response among those to the problem in one call, from 0.
        tokens: length of the response; None where it is not known.
        finished: the response ended by itself; False means it was cut.
        thinking: the prompt that the model was given opens a thought, so that the response begins in one.
    """

    gold: str
    response: str
    prompt: str = ""
    id: str = ""
    sample: int = 0
    tokens: int | None = None
    finished: bool = True
    thinking: bool = False


class Reward(Protocol):
    """Judges attempts. Implementations bound the time and memory of each one; any thread may call.

    Attributes:
        counts: verdicts ever given, by name. Log it: a rising "timeout" or "error" is a broken or gamed reward.
    """

    counts: Counter[str]

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """The verdict on every attempt, in order. A gold that this reward cannot read is an "error", never a raise.

        Raises BridgeError if nothing can be judged at all (worker processes cannot be started).
        """
        ...

    def close(self) -> None:
        """End what was started. May be called twice."""
        ...
