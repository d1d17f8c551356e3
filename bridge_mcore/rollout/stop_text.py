"""Texts that end an answer, where no token does: a base model that goes on with the next question.

An answer ends with the first token after which such a text stands; what ends it is decided by what was sampled before.
Engines stop there, each as its own way of reading tokens lets it see the text: at that token or some tokens later. So
every answer is cut as well, which decides where it ends and is the same for all engines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from bridge_mcore.rollout.engine import Rollout


def cut_at_text(rollout: Rollout, texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Rollout:
    """The rollout up to and with the first token that completes one of `texts`; itself if none comes."""
    if not texts or not _holds(decode(rollout.tokens), texts):
        return rollout
    low, high = 1, len(rollout.tokens)
    while low < high:  # the shortest beginning that holds one
        middle = (low + high) // 2
        low, high = (low, middle) if _holds(decode(rollout.tokens[:middle]), texts) else (middle + 1, high)
    spans, left = [], low
    for version, count in rollout.spans:
        if left > 0:
            spans.append((version, min(count, left)))
        left -= count
    return replace(
        rollout, tokens=rollout.tokens[:low], logprobs=rollout.logprobs[:low], finished=True, spans=tuple(spans)
    )


class StopTexts:
    """Looks after every token whether a text has ended an answer."""

    def __init__(self, texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        """decode: token ids to text, as `cut_at_text` reads them."""
        self.texts, self._decode = tuple(texts), decode
        #: last tokens of an answer that one can be spread over: each stands for a byte at least, but for special ones
        self.window = max((len(text.encode()) for text in texts), default=0) + 8

    def stand_in(self, tokens: Sequence[int]) -> bool:
        """Whether one of the texts stands in an answer, or in its last tokens."""
        return _holds(self._decode(tokens), self.texts)


def without_stop(text: str, texts: Sequence[str]) -> str:
    """A text before the first of `texts`: what a person reads, and what is judged."""
    ends = [place for stop in texts if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _holds(text: str, texts: Sequence[str]) -> bool:
    return any(stop in text for stop in texts)
