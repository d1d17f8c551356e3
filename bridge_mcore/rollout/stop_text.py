"""Texts that end an answer, where no token does: a base model that goes on with the next question.

Engines stop at tokens only. To cut a rollout at the first token after which such a text stands is the same as to have
stopped there: what ends it is decided by what was sampled before. The rest was generated in vain.
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


def without_stop(text: str, texts: Sequence[str]) -> str:
    """A text before the first of `texts`: what a person reads, and what is judged."""
    ends = [place for stop in texts if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def _holds(text: str, texts: Sequence[str]) -> bool:
    return any(stop in text for stop in texts)
