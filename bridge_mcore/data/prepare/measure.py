"""Lengths of prompts and traces, in tokens where there is a tokenizer and in characters where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_mcore.data.problem import Problem
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.data.texts import beginning


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trace as it is kept: its text, the length of prompt and trace together, and whether it is whole."""

    text: str
    total: int
    finished: bool


class Measure:
    """Measures texts, and fits traces into a limit.

    Args:
        tokenizer: directory of a tokenizer, or None for characters.
        template: which tokens stand around prompt and trace (`data.template`); characters have none.
    Raises CheckpointError if the tokenizer cannot be loaded, ConfigError if the template does not suit it.
    """

    def __init__(self, tokenizer: Path | None, template: str) -> None:
        self._template: Any = None
        self.unit = "characters"
        if tokenizer is None:
            return
        from bridge_mcore.data.stops import load_tokenizer

        self._template = PromptTemplate(load_tokenizer(tokenizer), template)
        self.unit = "tokens"

    def text(self, text: str) -> int:
        """Length of a text by itself."""
        return len(text) if self._template is None else len(self._ids(text))

    def fit(self, problem: Problem, limit: int | None, cut: bool) -> Fitted | None:
        """The problem's trace within `limit` (prompt, template and end token included), or None where it does not fit.

        A trace that is cut loses its end and its end token; one of a prompt that fills the limit cannot be kept.
        """
        trace = problem.trace or ""
        if self._template is None:
            before, total = len(problem.prompt), len(problem.prompt) + len(trace)
        else:
            encoded = self._template.trace(problem, limit)
            before, total = encoded.prompt_length, len(encoded.tokens)
        if limit is None or total <= limit:
            return Fitted(trace, total, True)
        room = limit - before
        if not cut or room <= 0:
            return None
        if self._template is None:
            return Fitted(trace[:room], limit, False)
        return self._cut(trace, before, room)

    def _cut(self, trace: str, before: int, room: int) -> Fitted | None:
        # Cut at the end of a token; the rest may tokenize otherwise than it did before what is gone, so look again.
        trace = beginning(self._template.tokenizer, trace, room)
        encoded = self._template.tokenizer(trace, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        tokens = min(room, len(encoded["offset_mapping"]))
        while tokens > 0:
            text = trace[: encoded["offset_mapping"][tokens - 1][1]]
            length = len(self._ids(text))
            if text.strip() and length <= room:
                return Fitted(text, before + length, False)
            tokens -= max(1, length - room)
        return None

    def _ids(self, text: str) -> list[int]:
        return list(self._template.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
