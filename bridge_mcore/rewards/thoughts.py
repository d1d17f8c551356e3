"""What of a response is said and what only thought: a guess in a thought is no answer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bridge_mcore.data.thoughts import THOUGHTS


def _any_of(marks: Iterable[str], more: str) -> re.Pattern[str]:
    """Any of the marks, also in capitals and with a space before the bracket that closes them."""
    spelled = (re.sub(r"(\\?[>\]])\Z", r"\\s{0,4}\1", re.escape(mark)) for mark in marks)
    return re.compile("|".join([*spelled, more]), re.IGNORECASE)


#: With the channels of gpt-oss, of which "final" alone is said.
_OPENING = _any_of(THOUGHTS, r"<\|channel\|>(?:analysis|commentary)\b[^<]{0,80}<\|message\|>")
_CLOSING = _any_of(THOUGHTS.values(), r"<\|channel\|>final\b[^<]{0,80}<\|message\|>")
_AT_THE_END = re.compile(rf"(?:{_OPENING.pattern})\s*\Z", re.IGNORECASE)
#: Characters of a prompt's end that are looked at.
TAIL = 80


def opens_thought(prompt: str) -> bool:
    """A prompt, as the model was given it, ends with the mark that opens a thought; the response then has none."""
    return _AT_THE_END.search(prompt[-TAIL:]) is not None


def after_thought(response: str, opened: bool = False) -> str:
    """What follows the end of the last thought; all of it where there is none; "" of a thought that does not end.

    opened: the prompt opened one. A closing mark alone says so too.
    """
    if not opened and not any(mark in response for mark in ("<", "[", "◁")):
        return response
    end = max((found.end() for found in _CLOSING.finditer(response)), default=-1)
    start = max((found.start() for found in _OPENING.finditer(response)), default=0 if opened else -1)
    if start >= 0 and end <= start:
        return ""
    return response if end < 0 else response[end:]
