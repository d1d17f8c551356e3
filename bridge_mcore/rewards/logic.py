r"""Knights and Knaves: who is what, read from the last box or `<answer>` tag, in any order and common wording.

The gold is `Alice is a knight, Bob is a knave`. Read alike: `Bob is a knave and Alice is a knight`,
`Alice: knight; Bob: knave`, `Alice and Carol are knights, Bob is a knave`, `Knights: Alice. Knaves: Bob`. An answer is
wrong if somebody is missing, is both, or if anything in it leaves a choice or cannot be read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge_mcore.rewards.local import LocalReward, given_answer
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

_KINDS = {"knight": True, "knights": True, "knave": False, "knaves": False}
_FILLERS = {"is", "are", "a", "an", "and", "the", "both", "so", "therefore", "while", "but", "also", "text", "quad"}
_HEDGES = {"or", "not", "either", "neither", "maybe", "possibly", "perhaps", "if", "unknown", "could", "may", "might"}
_TOKEN = re.compile(r"[^\W_]+|[?/]|:|\S")
_SEPARATORS = set(",;.:=-–—→>&\\{}()[]$*\"'“”|")
_SPACE_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm)?|mathrm|mathbf|quad|qquad|\\|,|;|:|!| )")


def people_of(gold: str) -> dict[str, bool] | None:
    """Who is a knight in a gold answer: `<name> is a knight|knave`, separated by commas; None if it is none."""
    found: dict[str, bool] = {}
    for clause in re.split(r",|;|\band\b", gold.strip().rstrip(".")):
        match = re.fullmatch(r"\s*(?P<name>[^\W_]+)\s+is\s+an?\s+(?P<kind>knight|knave)\s*", clause)
        if match is None or match["name"] in found:
            return None
        found[match["name"]] = _KINDS[match["kind"]]
    return found or None


def read_people(answer: str, names: Sequence[str]) -> dict[str, bool] | str:
    """Who is a knight according to an answer; a text that says why it does not tell."""
    by_lower = {name.lower(): name for name in names}
    found: dict[str, bool] = {}
    pending: list[str] = []
    heading: bool | None = None  # "Knights: Alice, Bob": the kind comes first
    named_since_kind = False
    for token in _TOKEN.findall(_SPACE_COMMAND.sub(" ", answer)):
        lower = token.lower()
        if token in names or (lower in by_lower and lower not in _FILLERS):
            name = token if token in names else by_lower[lower]
            if heading is None:
                pending.append(name)
            elif found.setdefault(name, heading) is not heading:
                return f"{name} is called both"
            named_since_kind = True
        elif lower in _KINDS:
            if not found and not pending and heading is None:
                heading = _KINDS[lower]
            elif heading is not None:
                if not named_since_kind:
                    return "two kinds and nobody between them"
                heading = _KINDS[lower]
            elif not pending:
                return f"a {lower} that is nobody"
            for name in pending:
                if found.setdefault(name, _KINDS[lower]) is not _KINDS[lower]:
                    return f"{name} is called both"
            pending, named_since_kind = [], False
        elif lower in _HEDGES or token in "?/":
            return f"it leaves a choice ('{token}')"
        elif lower not in _FILLERS and token not in _SEPARATORS:
            return f"cannot read '{token[:20]}'"
    if pending:
        return f"{pending[0]} is not said to be anything"
    missing = [name for name in names if name not in found]
    return f"{', '.join(missing)} is missing" if missing else found


class LogicReward(LocalReward):
    """Compares who is what."""

    def __init__(self) -> None:
        super().__init__(_judge)


def _judge(attempt: Attempt) -> Verdict:
    gold = people_of(attempt.gold)
    if gold is None:
        return Verdict("error", f"the gold answer '{attempt.gold[:60]}' does not say who is a knight and who a knave")
    answer = given_answer(attempt)
    if isinstance(answer, Verdict):
        return answer
    found = read_people(answer, list(gold))
    if isinstance(found, str):
        return Verdict("incorrect", found)
    wrong = [name for name in gold if found[name] is not gold[name]]
    if wrong:
        return Verdict("incorrect", f"{len(wrong)} of {len(gold)} people are wrong")
    return Verdict("correct", f"all {len(gold)} people")
