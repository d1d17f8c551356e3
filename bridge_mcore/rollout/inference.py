"""A checkpoint ready to answer: model, tokenizer, template and embedded engine, without optimizer or slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from bridge_mcore.platform.device import setup_device
from bridge_mcore.platform.distributed import Layout, process_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine


@dataclass
class Inference:
    """What answers, and how text becomes tokens and back."""

    shape: ModelShape
    tokenizer: Any
    template: PromptTemplate
    stops: tuple[int, ...]
    engine: EmbeddedEngine
    layout: Layout

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True)


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


@contextmanager
def open_model(
    directory: Path, template: str, device: str, adapter: Path | None = None, dtype: torch.dtype | None = None
) -> Iterator[Inference]:
    """Load an HF checkpoint (and a PEFT adapter) for answering, in one process. dtype: fp32 on CPU, else bf16."""
    platform = setup_device(device)
    _, shape = find_family(directory)
    tokenizer = load_tokenizer(directory, shape.vocab_size)
    prompts = PromptTemplate(tokenizer, template)
    if dtype is None:
        dtype = torch.float32 if platform.kind == "cpu" else torch.bfloat16
    with process_groups(platform, Parallel(), seed=0) as layout:
        stops = stop_token_ids(directory, prompts)
        chunks = load_chunks(directory, adapter, Parallel(), dtype, platform.device)
        yield Inference(shape, tokenizer, prompts, stops, EmbeddedEngine(chunks), layout)
