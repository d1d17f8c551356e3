"""Texts before they are tokens: valid, and no longer than can be of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge_mcore.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text without the tokens that a tokenizer puts around it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def check_unicode(text: str) -> None:
    """Raise DataError for a text that no tokenizer takes: half of a surrogate pair has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text is not valid Unicode: half of a surrogate pair at character {error.start + 1}; mend the text"
        ) from None


def is_far_over(text: str, most: int | None) -> bool:
    """Whether a text has so many characters that, within `most` tokens, each would stand for dozens of them."""
    return most is not None and len(text) > 64 * most + 10_000


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, most: int | None) -> str:
    """The text; or, where it is far longer than `most` tokens, as much of it as makes more than twice as many.

    Tokenizing takes hundreds of bytes a character: what cannot fit is not tokenized to its end. Nothing is assumed of
    the tokenizer (one may read a whole text as one unknown token): what of the beginning makes too few tokens is taken
    four times as long.
    """
    if most is None or not is_far_over(text, most):
        return text
    size = 4 * most + 1000
    while size < len(text):
        if len(token_ids(tokenizer, text[:size])) > 2 * most + 100:
            return text[:size]
        size *= 4
    return text
