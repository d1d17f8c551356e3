"""A checkpoint that answers, without optimizer or slots: its model, and its tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_mcore.checkpoint import hf, peft
from bridge_mcore.config.schema import Parallel
from bridge_mcore.data.stops import load_tokenizer, stop_token_ids
from bridge_mcore.data.templates import PromptTemplate
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import ModelShape
from bridge_mcore.model.gpt import PolicyModel, build_chunks
from bridge_mcore.model.lora import attach_lora


@dataclass
class TextSide:
    """What makes tokens of a checkpoint's prompts, and text of its answers."""

    shape: ModelShape
    tokenizer: Any
    template: PromptTemplate
    stops: tuple[int, ...]

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


def read_model(directory: Path, template: str) -> TextSide:
    """All of an HF checkpoint but its weights. Raises CheckpointError or ConfigError for what does not fit."""
    _, shape = find_family(directory)
    tokenizer = load_tokenizer(directory, shape.vocab_size)
    prompts = PromptTemplate(tokenizer, template)
    return TextSide(shape, tokenizer, prompts, stop_token_ids(directory, prompts))


def load_chunks(
    directory: Path, adapter: Path | None, parallel: Parallel, dtype: torch.dtype, device: torch.device
) -> list[PolicyModel]:
    """This rank's chunks of an HF checkpoint (and a PEFT adapter), for answering; within the layout's groups."""
    family, shape = find_family(directory)
    hf.check_checkpoint(directory, family, shape)
    lora = None if adapter is None else peft.read_adapter_config(adapter, shape)
    if adapter is not None and lora is not None:
        peft.open_adapter(adapter, lora, shape)
    chunks = build_chunks(shape, parallel, dtype, device)
    hf.load_theta(chunks, directory, family, shape)
    if adapter is not None and lora is not None:
        attach_lora(chunks, lora, shape, seed=0)
        peft.load_adapter(chunks, adapter, lora, shape)
        for chunk in chunks:
            chunk.to(device)
    return chunks
