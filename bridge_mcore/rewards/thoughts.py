"""What of a response is said and what only thought: a guess in a thought is no answer."""

from __future__ import annotations

import re

from bridge_mcore.data.thoughts import THOUGHTS

_OPENING = re.compile("|".join(map(re.escape, THOUGHTS)))
_CLOSING = re.compile("|".join(map(re.escape, THOUGHTS.values())))
_AT_THE_END = re.compile(rf"(?:{_OPENING.pattern})\s*\Z")
#: Characters of a prompt's end that are looked at.
TAIL = 80


def opens_thought(prompt: str) -> bool:
    """A prompt, as the model was given it, ends with the mark that opens a thought; the response then has none."""
    return _AT_THE_END.search(prompt[-TAIL:]) is not None


def after_thought(response: str, opened: bool = False) -> str:
    """What follows the end of the last thought; all of it where there is none; "" of a thought that does not end.

    opened: the prompt opened one. A closing mark alone says so too.
    """
    if not opened and not any(mark in response for mark in ("<", "[THINK]", "[/THINK]", "◁")):
        return response
    end = max((found.end() for found in _CLOSING.finditer(response)), default=-1)
    start = max((found.start() for found in _OPENING.finditer(response)), default=0 if opened else -1)
    if start >= 0 and end <= start:
        return ""
    return response if end < 0 else response[end:]
