"""A checkpoint's tokenizer and the tokens that end its answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_mcore.config.json_file import one_line, read_json_object, shown
from bridge_mcore.config.model_files import directory_sizes
from bridge_mcore.data.pairs import check_tokenizer
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.errors import CheckpointError


def load_tokenizer(directory: Path, vocab_size: int | None = None) -> Any:
    """A checkpoint's tokenizer, checked against its vocabulary (None: a tokenizer alone, for which none is known).

    Raises CheckpointError if it does not load, does not work or does not match.
    """
    from transformers import AutoTokenizer

    if not Path(directory).is_dir():  # transformers would take the name for one on the hub
        raise CheckpointError(f"{directory} is no directory; give one that holds a tokenizer")
    for path in Path(directory).iterdir():  # transformers would wait for a pipe, and read a device for ever
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path} is no regular file; put the file itself there")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        known = tokenizer.get_vocab()
        tokenizer("A word.", add_special_tokens=False)
    except Exception as error:  # transformers raises many types for an unreadable tokenizer
        raise CheckpointError(
            f"the tokenizer of {directory} cannot be loaded: {one_line(error) or type(error).__name__}; fetch "
            "again the files that came with the checkpoint"
        ) from error
    if not known:
        raise CheckpointError(f"the tokenizer of {directory} knows no token; fetch its files again")
    if vocab_size is not None:
        check_tokenizer(tokenizer, vocab_size)
    return tokenizer


def stop_token_ids(directory: Path, template: PromptTemplate, more: Sequence[int] = ()) -> tuple[int, ...]:
    """Tokens that end an answer: the template's, those of generation_config.json, and `more`."""
    return tuple(sorted({*template.stop_tokens, *generation_stops(directory), *more}))


def generation_stops(directory: Path) -> list[int]:
    """The tokens that end an answer by generation_config.json, if there is one.

    Raises CheckpointError for a file that cannot be read, or names what is no token of the model.
    """
    path = Path(directory) / "generation_config.json"
    if not path.exists():
        return []
    named = read_json_object(path).get("eos_token_id")
    found = [] if named is None else named if isinstance(named, list) else [named]
    if not all(type(token) is int for token in found):
        raise CheckpointError(f"{path}: eos_token_id is {shown(named)}, not a token id or a list of them")
    size = directory_sizes(Path(directory)).vocabulary
    wrong = [token for token in found if token < 0 or (size is not None and token >= size)]
    if wrong:
        raise CheckpointError(
            f"{path}: eos_token_id {shown(wrong[0])} is no token of the model, whose vocab_size is {size}; use the "
            "file that came with the checkpoint, or remove it"
        )
    return found
