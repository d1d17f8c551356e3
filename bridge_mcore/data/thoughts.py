"""How thoughts are opened and closed in the texts of prompts and traces."""

from __future__ import annotations

#: What closes a thought, by what opens it.
THOUGHTS = {
    "<think>": "</think>", "<thinking>": "</thinking>", "<thought>": "</thought>", "<thoughts>": "</thoughts>",
    "<reasoning>": "</reasoning>",
    "<|begin_of_thought|>": "<|end_of_thought|>", "[THINK]": "[/THINK]", "◁think▷": "◁/think▷",
    "<seed:think>": "</seed:think>",
}  # fmt: skip


def opening_of(text: str) -> str | None:
    """The mark with which a text opens a thought at its beginning, or None."""
    return next((mark for mark in THOUGHTS if text.startswith(mark)), None)


def opened_at_end(text: str) -> tuple[str, str] | None:
    """(mark, white space after it) of the thought that a prompt opens at its end, or None."""
    bare = text.rstrip()
    opened = next((mark for mark in THOUGHTS if bare.endswith(mark)), None)
    return None if opened is None else (opened, text[len(bare) :])


def closes_unopened(text: str) -> bool:
    """Whether a text closes a thought that it does not open."""
    return any(closing in text and opening not in text for opening, closing in THOUGHTS.items())


def closed_at_end(text: str) -> bool:
    """Whether a prompt closes a thought at its end: the answer begins without one."""
    return text.rstrip().endswith(tuple(THOUGHTS.values()))
