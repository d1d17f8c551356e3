r"""Find the answer of a response: its last balanced ``\boxed{...}``."""

from __future__ import annotations

import re

# One or two backslashes: a response that escaped its LaTeX twice (``\\boxed{5}``) still shows which answer it means.
# The bound keeps the scan linear on a run of a million backslashes. Any other ``\x`` is taken as one token, which is
# what makes ``\{`` and ``\}`` characters rather than braces.
_TOKEN = re.compile(r"(?P<box>\\{1,2}boxed\s*\{)|(?P<escaped>\\.)|(?P<open>\{)|(?P<close>\})", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last balanced ``\boxed{...}`` in ``text``, or None without one; linear in ``len(text)``.

    "Last" is the one that *starts* last, so that of ``\boxed{x = \boxed{5}}`` it is ``5``. White space may stand
    between ``\boxed`` and its brace; ``\boxed 5`` (no brace) and ``\fbox{5}`` are not boxes. Escaped braces do not
    count. An unclosed box is passed over, also when it comes after a balanced one: a response cut off in the middle
    of ``... \boxed{5} ... \boxed{6`` has given one whole answer, 5, and an unknown beginning of another. The content
    is stripped and may be empty.
    """
    if "boxed" not in text:
        return None
    open_braces: list[re.Match[str] | None] = []  # the box that a brace opened, None for a plain brace
    best: re.Match[str] | None = None
    end = 0
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "box":
            open_braces.append(token)
        elif kind == "open":
            open_braces.append(None)
        elif kind == "close" and open_braces:
            box = open_braces.pop()
            if box is not None and (best is None or box.start() > best.start()):
                best, end = box, token.start()
    return None if best is None else text[best.end() : end].strip()
