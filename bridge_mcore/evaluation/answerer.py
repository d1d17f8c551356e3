"""What answers in an evaluation: a checkpoint behind the embedded engine, or behind SGLang or vLLM servers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
#: Answers that are finished within so many seconds are handed on together.
_GATHER_S = 0.25


class Answerer(Protocol):
    """Gives answers in blocks, in the order in which they come in."""

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Rollout]]:
        """One rollout for each request."""
        ...


class _Embedded:
    """The embedded engine, a batch at a time; answers are given as they are finished."""

    def __init__(self, engine: EmbeddedEngine, shape: ModelShape, platform: Platform, element_bytes: int) -> None:
        self.engine = engine
        self._budget = platform.total_gib() * 2**30 * _CACHE_SHARE
        self._token_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * element_bytes

    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[list[Rollout]]:
        """See Answerer. Samples of one problem stay together: they share its prefill."""
        longest = max((len(r.prompt) for r in requests), default=0) + params.max_new_tokens
        size = int(min(max(self._budget // (self._token_bytes * longest), 1), _BATCH))
        self.engine.batch_size = size
        batches = (requests[start : start + size] for start in range(0, len(requests), size))
        blocks = (list(done.values()) for batch in batches for done in self.engine.stream(batch, params))
        return gathered(blocks, _GATHER_S)


def gathered(blocks: Iterable[list[Rollout]], seconds: float) -> Iterator[list[Rollout]]:
    """Blocks, of which many may be empty, as fewer ones: what comes within some seconds is one.

    At least as long as the last one was worked on: what is judged together takes less time.
    """
    ready: list[Rollout] = []
    since, patience = time.monotonic(), seconds
    for block in blocks:
        ready += block
        now = time.monotonic()
        if ready and now - since >= patience:
            yield ready
            ready, since = [], time.monotonic()
            patience = max(seconds, since - now)
    if ready:
        yield ready


@contextmanager
def open_answerer(
    model: Path,
    serving: Serving,
    context: int,
    sampling: SamplingParams,
    directory: Path,
    decode: Callable[[Sequence[int]], str],
) -> Iterator[Answerer]:
    """Load an HF checkpoint, or start (or find) servers of it; they end with the context.

    Args:
        context: tokens that the longest prompt and answer take together.
        sampling: of the answers, or of most of them.
        directory: of servers' logs.
        decode: token ids to text, as answers are read.
    """
    platform = setup_device(serving.device)
    dtype = serving.weights
    _, shape = find_family(model)
    with process_groups(platform, Parallel(), seed=0):
        if serving.engine == "embedded":
            kind: torch.dtype = getattr(torch, dtype)
            chunks = load_chunks(model, None, Parallel(), kind, platform.device)
            yield _Embedded(EmbeddedEngine(chunks, _BATCH, decode), shape, platform, kind.itemsize)
            return
        from bridge_mcore.rollout.remote.fixed import serve

        with serve(
            model,
            serving.engine,
            serving.servers,
            platform,
            dtype,
            context,
            shape.vocab_size,
            sampling,
            directory,
            decode,
        ) as engine:
            yield engine
