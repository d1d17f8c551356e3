"""What answers in an evaluation: a checkpoint behind the embedded engine, or behind SGLang or vLLM servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from bridge_mcore.config.schema import Parallel
from bridge_mcore.evaluation.options import Serving
from bridge_mcore.model.families import find_family
from bridge_mcore.model.families.base import ModelShape
from bridge_mcore.platform.device import Platform, setup_device
from bridge_mcore.platform.distributed import process_groups
from bridge_mcore.rollout.embedded import EmbeddedEngine
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.inference import load_chunks

#: Most sequences that the embedded engine decodes together, and the share of memory that their cache may take.
_BATCH = 64
_CACHE_SHARE = 0.25


class Answerer(Protocol):
    """Gives answers in blocks, in the order in which they come in."""

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Rollout]]:
        """One rollout for each request."""
        ...


class _Embedded:
    """The embedded engine, a batch at a time."""

    def __init__(self, engine: EmbeddedEngine, shape: ModelShape, platform: Platform, element_bytes: int) -> None:
        self.engine = engine
        self._budget = platform.total_gib() * 2**30 * _CACHE_SHARE
        self._token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * element_bytes

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Rollout]]:
        """See Answerer. Samples of one problem stay together: they share its prefill."""
        longest = max((len(r.prompt) for r in requests), default=0) + params.max_new_tokens
        size = int(min(max(self._budget // (self._token_bytes * longest), 1), _BATCH))
        self.engine.batch_size = size
        for start in range(0, len(requests), size):
            yield self.engine.generate(requests[start : start + size], params)


@contextmanager
def open_answerer(
    model: Path, serving: Serving, context: int, sampling: SamplingParams, directory: Path
) -> Iterator[Answerer]:
    """Load an HF checkpoint, or start (or find) servers of it; they end with the context.

    Args:
        context: tokens that the longest prompt and answer take together.
        sampling: of the answers, or of most of them.
        directory: of servers' logs.
    """
    platform = setup_device(serving.device)
    dtype = serving.weights
    _, shape = find_family(model)
    with process_groups(platform, Parallel(), seed=0):
        if serving.engine == "embedded":
            kind: torch.dtype = getattr(torch, dtype)
            chunks = load_chunks(model, None, Parallel(), kind, platform.device)
            yield _Embedded(EmbeddedEngine(chunks, _BATCH), shape, platform, kind.itemsize)
            return
        from bridge_mcore.rollout.remote.fixed import serve

        with serve(
            model, serving.engine, serving.servers, platform, dtype, context, shape.vocab_size, sampling, directory
        ) as engine:
            yield engine
