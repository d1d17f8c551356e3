"""A checkpoint's tokenizer and the tokens that end its answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_mcore.data.pairs import check_tokenizer
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import CheckpointError


def load_tokenizer(directory: Path, vocab_size: int) -> Any:
    """The checkpoint's tokenizer, checked against its vocabulary. CheckpointError if it does not load or match."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers raises many types for an unreadable tokenizer
        raise CheckpointError(f"the tokenizer of {directory} cannot be loaded: {error}") from error
    check_tokenizer(tokenizer, vocab_size)
    return tokenizer


def stop_token_ids(directory: Path, template: PromptTemplate, more: Sequence[int] = ()) -> tuple[int, ...]:
    """Tokens that end an answer: the template's, those of generation_config.json, and `more`."""
    path = Path(directory) / "generation_config.json"
    model: list[int] = []
    if path.is_file():
        try:
            named = json.loads(path.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        model = [] if named is None else named if isinstance(named, list) else [named]
        if not all(isinstance(token, int) for token in model):
            raise CheckpointError(f"{path}: eos_token_id is {named!r}, not a token id or a list of them")
    return tuple(sorted({*template.stop_tokens, *model, *more}))
