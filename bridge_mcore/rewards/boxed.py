r"""Find the answer of a response: its last balanced ``\boxed{...}``, with those that stand in one breath with it."""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

# One or two backslashes: a response that escaped its LaTeX twice (``\\boxed{5}``) still shows which answer it means.
# The bound keeps the scan linear on a run of a million backslashes. Any other ``\x`` is taken as one token, which is
# what makes ``\{`` and ``\}`` characters rather than braces.
_TOKEN = re.compile(r"(?P<box>\\{1,2}boxed\s*\{)|(?P<escaped>\\.)|(?P<open>\{)|(?P<close>\})", re.DOTALL)


# What may stand between two boxes of one answer: `\boxed{1}, \boxed{2}`, `$\boxed{1}$ and $\boxed{2}$`.
_BETWEEN = re.compile(
    r"(?:\s|\$|,|;|&|\\[,;: ()\[\]]|\\q?quad|\\(?:text|mathrm)\s*\{\s*,?\s*(?:and|or),?\s*\}|\b(?:and|or)\b)*"
)
_BETWEEN_LENGTH = 60
_OPENING = re.compile(r"\\boxed\s*\{")
_FRAME = re.compile(r"\\(?:fbox|framebox)\s*\{")
#: Boxes from the end that are looked at one by one before the whole text is scanned.
_QUICK_TRIES = 4
#: Boxes that may form one answer.
_MOST_BOXES = 32


class _Box(NamedTuple):
    start: int
    inside: int
    end: int


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` in ``text``, or None without one; linear in ``len(text)``.

    "Last" is the one that *starts* last, so that of ``\boxed{x = \boxed{5}}`` it is ``5``. White space may stand
    between ``\boxed`` and its brace; ``\boxed 5`` (no brace) is no box, and ``\fbox{5}`` one only where there is no
    ``\boxed{`` at all. Escaped braces do not count. An unclosed box is passed over, also when it comes after a balanced
    one: a response cut off in the middle of ``... \boxed{5} ... \boxed{6`` has given one whole answer, 5, and an
    unknown beginning of another. The content
    is stripped and may be empty.
    """
    text = _with_frames(text)
    boxes = _last_boxes(text)
    return None if not boxes else text[boxes[-1].inside : boxes[-1].end].strip()


def answer_boxes(text: str) -> list[str]:
    r"""The content of the last balanced box, and before it those of the boxes that stand in one breath with it.

    In one breath means that there is nothing but "," or "and" or "or" between them: ``\boxed{5} or \boxed{6}`` is one
    answer of two values. An empty last box makes it an empty answer.
    """
    text = _with_frames(text)
    boxes = _last_boxes(text)
    contents = [text[box.inside : box.end].strip() for box in boxes]
    if contents and not contents[-1]:
        return [""]
    return list(dict.fromkeys(content for content in contents if content))


def _with_frames(text: str) -> str:
    r"""``text`` with ``\fbox`` as ``\boxed``, where it has no ``\boxed{`` of its own."""
    return (
        _FRAME.sub(r"\\boxed{", text) if "\\f" in text and _FRAME.search(text) and not _OPENING.search(text) else text
    )


def _last_boxes(text: str) -> list[_Box]:
    """The box that starts last, and before it those that belong to the same answer."""
    end = len(text)
    for _ in range(_QUICK_TRIES):
        at = text.rfind("boxed", 0, end)
        if at < 0:
            return []
        end = at
        if (opening := _OPENING.match(text, max(at - 1, 0))) and (box := _closed(text, opening)):
            return [box] if _alone(text, box) else _scan(text)
    return _scan(text)


def _closed(text: str, opening: re.Match[str]) -> _Box | None:
    depth = 1
    for token in _TOKEN.finditer(text, opening.end()):
        if token.lastgroup in ("open", "box"):
            depth += 1
        elif token.lastgroup == "close":
            depth -= 1
            if not depth:
                return _Box(opening.start(), opening.end(), token.start())
    return None


def _alone(text: str, box: _Box) -> bool:
    """No other box can stand in one breath with this one."""
    before = text.rfind("}", max(0, box.start - _BETWEEN_LENGTH - 2), box.start)
    return before < 0 or not _in_one_breath(text, before + 1, box.start)


def _scan(text: str) -> list[_Box]:
    open_braces: list[re.Match[str] | None] = []  # the box that a brace opened, None for a plain brace
    closed: deque[_Box] = deque(maxlen=_MOST_BOXES)
    best: _Box | None = None
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "box":
            open_braces.append(token)
        elif kind == "open":
            open_braces.append(None)
        elif kind == "close" and open_braces and (opening := open_braces.pop()) is not None:
            box = _Box(opening.start(), opening.end(), token.start())
            closed.append(box)
            if best is None or box.start > best.start:
                best = box
    if best is None:
        return []
    boxes = [best]
    for box in reversed(closed):
        if box.end < boxes[0].start and _in_one_breath(text, box.end + 1, boxes[0].start):
            boxes.insert(0, box)
    return boxes


def _in_one_breath(text: str, start: int, end: int) -> bool:
    between = text[start:end]
    return len(between) <= _BETWEEN_LENGTH and "\n\n" not in between and _BETWEEN.fullmatch(between) is not None
