"""From problems to tokens within the context, and the check that a tokenizer belongs to its model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from bridge_mcore.config.schema import Data
from bridge_mcore.data.notes import Notes
from bridge_mcore.data.problem import Problem
from bridge_mcore.data.templates import EncodedTrace, PromptTemplate
from bridge_mcore.data.texts import is_far_over
from bridge_mcore.errors import CheckpointError, DataError
from bridge_mcore.monitoring.text import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger(__name__)
_Encoded = TypeVar("_Encoded", "EncodedPrompt", EncodedTrace)


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A problem and the token ids that the policy continues."""

    problem: Problem
    tokens: list[int]


def encode_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    limit_tokens: int,
    counts: Notes | None = None,
    mend: str = "raise training.max_length (the model's context permitting) or lower rollout.max_new_tokens",
) -> list[EncodedPrompt]:
    """Tokenize prompts in order; `limit_tokens` is the longest prompt that leaves room for a response.

    A longer one is a DataError, which says how to `mend` it. With `data.overlong` drop or cut it is left out and logged
    (half a question is another question, so a prompt is never cut); all left out is a DataError too. `counts` gets how
    many were "kept" and "dropped", and what was done to their texts.
    """
    template = PromptTemplate(tokenizer, data.template, data.system_prompt, data.instruction, counts)
    encoded = (EncodedPrompt(problem, template.prompt(problem, limit_tokens)) for problem in problems)
    return _within(encoded, "prompt", limit_tokens, data.overlong, mend, counts)


def encode_traces(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    data: Data,
    limit_tokens: int,
    counts: Notes | None = None,
) -> list[EncodedTrace]:
    """Tokenize prompts with their expert traces in order; `limit_tokens` is the longest whole sequence.

    Too long ones are treated as in :func:`encode_prompts`, but for `data.overlong: cut`: a trace is cut at the limit,
    and its last token is one of the trace, not the end of the turn (which would teach to stop in mid-thought). Where
    the prompt alone fills the limit, nothing is left to learn and the problem is dropped. `counts` gets how many were
    "kept" whole, "cut" and "dropped", and what was done to their texts. Raises DataError for a problem without a trace.
    """
    template = PromptTemplate(tokenizer, data.template, data.system_prompt, data.instruction, counts)
    encoded = (template.trace(problem, limit_tokens) for problem in problems)
    mend = "raise training.max_length (the model's context permitting)"
    return _within(encoded, "prompt and trace", limit_tokens, data.overlong, mend, counts)


def _within(
    encoded: Iterable[_Encoded],
    what: str,
    limit: int,
    overlong: Literal["error", "drop", "cut"],
    mend: str,
    counts: Notes | None,
) -> list[_Encoded]:
    kept: list[_Encoded] = []
    dropped: list[str] = []
    cut: list[str] = []
    for item in encoded:
        if len(item.tokens) <= limit:
            kept.append(item)
            continue
        text = f"{item.problem}: {what} of {_length(item, limit)}, the limit is {limit}"
        if overlong == "error":
            choice = "data.overlong: drop" + (" or cut" if isinstance(item, EncodedTrace) else "")
            raise DataError(f"{text}; {mend}, or set {choice}")
        if overlong == "cut" and isinstance(item, EncodedTrace) and item.prompt_length < limit:
            kept.append(replace(item, tokens=item.tokens[:limit]))
            cut.append(text)
        else:
            dropped.append(text)
    if counts is not None:
        counts.update(kept=len(kept) - len(cut), cut=len(cut), dropped=len(dropped))
    if dropped and not kept:
        raise DataError(f"every one of {len(dropped)} problems is over the limit ({dropped[0]}); {mend}")
    if not kept:
        raise DataError("there are no problems to encode; the data source is empty")
    for done, texts in (("dropped", dropped), ("cut", cut)):
        if texts:
            total = len(dropped) + len(kept)
            first = visible(texts[0])
            _log.warning("%s %d of %d problems over the limit; the first: %s", done, len(texts), total, first)
    return kept


def _length(item: EncodedPrompt | EncodedTrace, limit: int) -> str:
    """How long a sequence over the limit is; one that is far over it was not tokenized to its end."""
    texts = [] if item.problem is None else [item.problem.prompt, item.problem.trace or ""]
    if not any(is_far_over(text, limit) for text in texts):
        return f"{len(item.tokens)} tokens"
    return f"{sum(map(len, texts)):,} characters, far too many to be tokenized"


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
    """Refuse a tokenizer that cannot be this model's. Models pad their vocabulary, so it may be larger, not smaller.

    Raises CheckpointError if some token id has no row in the embedding, if most rows have no token (another model's
    tokenizer), or if there is no end-of-sequence token.
    """
    name = f"the tokenizer {tokenizer.name_or_path}".rstrip()
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= vocab_size:
        raise CheckpointError(
            f"{name} does not match the model: its token '{token}' has id {largest}, the model's vocab_size is "
            f"{vocab_size} (ids 0 to {vocab_size - 1}); use the tokenizer that came with the checkpoint"
        )
    if 2 * (largest + 1) < vocab_size:
        raise CheckpointError(
            f"{name} does not match the model: it has {largest + 1} ids, the model's vocab_size is {vocab_size}; "
            "use the tokenizer that came with the checkpoint"
        )
    if tokenizer.eos_token_id is None:
        raise CheckpointError(
            f"{name} has no end-of-sequence token, so no response would ever end; set eos_token in "
            "tokenizer_config.json"
        )
