"""Where a response says its final answer: the last box, or the last `<answer>` tag."""

from __future__ import annotations

import re

from bridge_mcore.rewards.boxed import last_boxed

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)


def final_answer(text: str) -> str | None:
    r"""The content of the last closed `<answer>…</answer>`, or of the last `\boxed{…}` if that is in or after it.

    None without either. A box inside the tag is its content; white space around is taken off.
    """
    tag = max(_TAG.finditer(text), key=re.Match.start, default=None)
    if tag is None:
        return last_boxed(text)
    after = last_boxed(text[tag.end() :])
    inside = last_boxed(tag[1])
    return after if after is not None else inside if inside is not None else tag[1].strip()
