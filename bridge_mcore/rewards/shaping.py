r"""Adjustments of the scalar reward for form and length. All are off unless asked for.

`adjustment` is a pure function of one attempt and its verdict; whoever makes rewards adds it to the verdict's. Both
kinds reward what is not the task, so a policy may come to serve them: log `Adjustment.format` and `.length` apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bridge_mcore.errors import ConfigError
from bridge_mcore.rewards.boxed import last_boxed
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

_BOX = re.compile(r"\\boxed\s*\{")
_THINK = re.compile(r"\s*<think>(?:(?!</?think>).)*</think>(?:(?!</?think>).)*", re.DOTALL)
_ANSWER = re.compile(r"(?:(?!</?answer>).)*<answer>(?:(?!</?answer>).)*</answer>(?:(?!</?answer>).)*", re.DOTALL)


@dataclass(frozen=True)
class FormatShaping:
    r"""Whether a response has the form asked for; nothing is required by default.

    Attributes:
        one_box: exactly one `\boxed{…}`, and closed.
        think: one `<think>…</think>` at the very start, and no other; its opening may be the prompt's.
        answer: exactly one `<answer>…</answer>`.
        finished: it ended by itself, before the limit of tokens.
        pattern: a regular expression that must be found in it (`re.search`, dot matches line ends).
        bonus: added if everything required is there.
        penalty: subtracted if something is not; a positive number.
    """

    one_box: bool = False
    think: bool = False
    answer: bool = False
    finished: bool = False
    pattern: str | None = None
    bonus: float = 0.0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.bonus < 1e6 and 0 <= self.penalty < 1e6):
            raise ConfigError(f"format shaping: bonus {self.bonus} and penalty {self.penalty} must not be negative")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ConfigError(
                    f"format shaping: pattern '{self.pattern}' is no regular expression: {error}"
                ) from None

    @property
    def required(self) -> bool:
        """Something is asked for."""
        return self.one_box or self.think or self.answer or self.finished or self.pattern is not None


@dataclass(frozen=True)
class LengthShaping:
    """A punishment for long responses, in tokens; off without `limit`.

    `soft_overlong` is Eq. (13) of DAPO (Yu et al., 2025): with L_max = `limit` and L_cache = `cache`, nothing up to
    L_max - L_cache tokens, then down in a straight line to -1 at L_max, and -1 beyond. `linear` takes
    `weight` x length / limit from correct responses only, at most `weight`: the shorter of two right answers is better.

    Attributes:
        kind: "soft_overlong" or "linear".
        limit: L_max, tokens.
        cache: L_cache, tokens; 1 to `limit`. DAPO has 4096 of 20480.
        weight: what the punishment is multiplied with; 1 in DAPO.
    """

    kind: str = "soft_overlong"
    limit: int | None = None
    cache: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("soft_overlong", "linear"):
            raise ConfigError(f"length shaping: '{self.kind}' is unknown; there is soft_overlong and linear")
        if self.limit is None:
            return
        if self.limit < 1 or not 0 <= self.weight < 1e6:
            raise ConfigError(f"length shaping: limit {self.limit} and weight {self.weight} must be positive")
        if self.kind == "soft_overlong" and not (self.cache is not None and 1 <= self.cache <= self.limit):
            raise ConfigError(f"length shaping: cache must be from 1 to limit ({self.limit}), it is {self.cache}")


@dataclass(frozen=True)
class Adjustment:
    """What is added to a reward, by its cause."""

    format: float = 0.0
    length: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.format + self.length


def adjustment(
    attempt: Attempt,
    verdict: Verdict,
    form: FormatShaping | None = None,
    length: LengthShaping | None = None,
) -> Adjustment:
    """What shaping adds to the reward of one attempt; zero where it is off, and for undecided verdicts.

    :raises ValueError: length shaping is on and the attempt does not say how many tokens it has.
    """
    if not verdict.decided:
        return Adjustment()
    return Adjustment(
        format=format_adjustment(attempt, form) if form is not None else 0.0,
        length=length_adjustment(attempt, verdict, length) if length is not None else 0.0,
    )


def format_adjustment(attempt: Attempt, form: FormatShaping) -> float:
    """The bonus, or minus the penalty."""
    if not form.required:
        return 0.0
    return form.bonus if well_formed(attempt, form) else -form.penalty


def well_formed(attempt: Attempt, form: FormatShaping) -> bool:
    """Whether a response has everything that is required."""
    text = attempt.response
    return (
        (not form.one_box or _one_closed_box(text))
        and (not form.think or _THINK.fullmatch(f"<think>{text}" if attempt.thinking else text) is not None)
        and (not form.answer or _ANSWER.fullmatch(text) is not None)
        and (not form.finished or attempt.finished)
        and (form.pattern is None or re.search(form.pattern, text, re.DOTALL) is not None)
    )


def length_adjustment(attempt: Attempt, verdict: Verdict, length: LengthShaping) -> float:
    """Minus the punishment; never positive."""
    if length.limit is None:
        return 0.0
    if attempt.tokens is None:
        raise ValueError("length shaping needs the number of tokens of every response")
    if length.kind == "linear":
        return -length.weight * min(1.0, attempt.tokens / length.limit) if verdict.verdict == "correct" else 0.0
    assert length.cache is not None  # checked when it was made
    over = attempt.tokens - (length.limit - length.cache)
    return -length.weight * min(1.0, max(0.0, over / length.cache))


def _one_closed_box(text: str) -> bool:
    return len(_BOX.findall(text)) == 1 and last_boxed(text) is not None
