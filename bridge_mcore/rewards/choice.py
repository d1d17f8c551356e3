r"""Multiple choice: the letter in a response's last box against the gold letter.

The gold is a letter, `C`, or a letter and the number of choices, `C/4`. Read as C: `C`, `(C)`, `C.`, `\text{C}`,
`C) 5 m`, `option C`, `Answer: C`, and `c` alone. Several letters, or one hedged with another, are wrong.
"""

from __future__ import annotations

import re
from string import ascii_uppercase

from bridge_mcore.rewards.local import LocalReward, given_answer
from bridge_mcore.rewards.protocol import Attempt
from bridge_mcore.rewards.verdict import Verdict

_GOLD = re.compile(r"\(?([A-Za-z])\)?\.?(?:\s*/\s*(\d{1,2}))?")
_COMMAND = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathsf|mathit|mbox|bf|rm)(?![A-Za-z])\s*")
_PREFIX = re.compile(
    r"(?:(?:the|my|final|correct|best|right|answer|option|choice|letter)\b\s*|(?:is|=|:)(?![a-z])\s*)+", re.I
)
_ALONE = re.compile(r"([A-Za-z])")
_WITH_TEXT = re.compile(r"([A-Z])(?:\s*[):.]|\s+[-–—]|\s*,?\s*(?=because\b))\s*(?P<rest>.*)", re.DOTALL)
_BRACKETED = re.compile(r"\(([A-Z])\)\s*(?P<rest>.*)", re.DOTALL)
_SEVERAL = re.compile(
    r"[(\[]?[A-Z][)\].]?(?:\s*(?:,|/|&|;|\s|\bor\b|\band\b)+\s*[(\[]?[A-Z][)\].]?(?![A-Za-z]))+", re.I
)
# what follows a letter goes on with another one: "C) and D", "C. D"
_CONTINUED = re.compile(r"(?:(?:,|/|&|;|or\b|and\b)\s*)+\(?[A-Z]\)?(?![A-Za-z])|[A-Z]\)?$")
_ANOTHER = re.compile(r"(?:^|[\s,;/(])\(?([A-Z])\)|\bor\s+(?:option\s+)?\(?([A-Z])\)?\s*$")


def read_letter(answer: str) -> tuple[str | None, str]:
    """(the letter of an answer, why there is none)."""
    text = _COMMAND.sub("", answer).replace("$", "").replace("\\(", "").replace("\\)", "").replace("*", "")
    text = " ".join(text.replace("{", " ").replace("}", " ").replace("~", " ").split()).strip()
    if prefix := _PREFIX.match(text):
        text = text[prefix.end() :].strip() or text
    text = text.rstrip(".").strip()
    bare = text.strip("()[] ")
    if _ALONE.fullmatch(bare):
        return bare.upper(), ""
    several = f"several letters: {text[:40]}"
    if found := (_BRACKETED.fullmatch(text) or _WITH_TEXT.fullmatch(text)):
        others = {letter for match in _ANOTHER.finditer(found["rest"]) for letter in match.groups() if letter}
        if others - {found[1]} or _CONTINUED.match(found["rest"]):
            return None, several
        return found[1], ""
    if _SEVERAL.fullmatch(text) or (len(text) < 6 and text.isalpha() and text.isupper()):
        return None, several
    return None, f"no letter: {text[:40]}"


class ChoiceReward(LocalReward):
    """Compares letters."""

    def __init__(self) -> None:
        super().__init__(_judge)


def read_gold(text: str) -> tuple[str, str] | str:
    """(the letter of a gold answer, all letters that there are); a text that says why it is none."""
    gold = _GOLD.fullmatch(text.strip())
    if gold is None:
        return f"the gold answer '{text[:40]}' is no letter (C, or C/4 of four choices)"
    wanted, choices = gold[1].upper(), ascii_uppercase[: int(gold[2])] if gold[2] else ascii_uppercase
    return (wanted, choices) if wanted in choices else f"the gold answer {wanted} is not among its {gold[2]} choices"


def _judge(attempt: Attempt) -> Verdict:
    gold = read_gold(attempt.gold)
    if isinstance(gold, str):
        return Verdict("error", gold)
    wanted, choices = gold
    answer = given_answer(attempt)
    if isinstance(answer, Verdict):
        return answer
    letter, why = read_letter(answer)
    if letter is None:
        return Verdict("incorrect", why)
    if letter not in choices:
        return Verdict("incorrect", f"{letter} is not among the {len(choices)} choices")
    return Verdict("correct" if letter == wanted else "incorrect", f"chose {letter}")
