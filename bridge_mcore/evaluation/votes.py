"""Answers that say the same in other words, spelt alike before they are counted as votes."""

from __future__ import annotations

from bridge_mcore.rewards.choice import read_letter
from bridge_mcore.rewards.local import MAX_ANSWER
from bridge_mcore.rewards.logic import people_of, read_people


def same_spelling(kind: str, answer: str, gold: str) -> str:
    """An answer as the reward `kind` reads it; as it is where that reward cannot, or compares by itself (`math`)."""
    if len(answer) > MAX_ANSWER:
        return answer
    if kind == "choice":
        return read_letter(answer)[0] or answer
    if kind == "logic" and (people := people_of(gold)) is not None:
        found = read_people(answer, list(people))
        if not isinstance(found, str):
            return ", ".join(f"{name} is a {'knight' if found[name] else 'knave'}" for name in people)
    return answer
