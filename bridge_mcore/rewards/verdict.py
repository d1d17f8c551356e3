"""What a verifier says of one response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

VerdictName = Literal["correct", "incorrect", "timeout", "error"]
#: How rewards that read an answer in a certain form begin to say that a response holds none.
_NO_ANSWER = ("no \\boxed", "no <answer>", "an empty \\boxed", "no code block")
VERDICTS: tuple[VerdictName, ...] = get_args(VerdictName)


@dataclass(frozen=True)
class Verdict:
    """One verdict and, in words, why.

    ``timeout`` (the comparison ran past its limit) and ``error`` (it could not be made: a crash, no memory, an empty
    gold answer) say that nothing was decided. They are kept apart from ``incorrect`` so that they can be counted: a
    verifier that fails on every call otherwise looks like a policy that is always wrong (verl 5635, 5839).
    """

    verdict: VerdictName
    reason: str
    #: A reward between right and wrong, where the function that judged gave one (partial credit); None: the verdict's.
    score: float | None = None
    #: Undecided by the answer's own doing: it took its time although nothing kept it from working. It is no more right
    #: for that, but no sign of a dead reward either (:mod:`bridge_mcore.training.undecided`).
    own_doing: bool = False

    @property
    def decided(self) -> bool:
        """True for ``correct`` and ``incorrect``."""
        return self.verdict in ("correct", "incorrect")

    @property
    def unanswered(self) -> bool:
        """The response holds no answer in the form that the reward reads."""
        return self.verdict == "incorrect" and says_no_answer(self.reason)


def says_no_answer(reason: str) -> bool:
    """Whether a verdict's reason is that the response holds no answer in the form that the reward reads."""
    return reason.startswith(_NO_ANSWER)


def why_undecided(reward: str, verdict: str, reason: str) -> str:
    """Which reward did not reach a verdict, and why, in one line of bounded length."""
    text = " ".join(reason.split())
    return f"by {reward}: {verdict}: {text if len(text) <= 300 else text[:299] + '…'}"


def reward(verdict: Verdict, correct: float = 1.0, incorrect: float = 0.0) -> float:
    """The scalar reward of a verdict: ``correct`` or ``incorrect``.

    An undecided verdict earns ``incorrect``, since the policy is what wrote an answer that cannot be checked; whoever
    calls this must also log :attr:`MathVerifier.counts`, so that these cases never pass unseen.
    """
    return correct if verdict.verdict == "correct" else incorrect
