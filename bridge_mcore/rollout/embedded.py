"""The engine inside the trainer: batched decoding with a key-value cache from the live weights.

There is nothing to synchronise: what acts is what learns. It suits small models; large ones want SGLang or vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from bridge_mcore.errors import TrainingError
from bridge_mcore.model.attention import KVCache
from bridge_mcore.model.gpt import PolicyModel
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.sampling import sample, uniform

#: Rows leave the batch once fewer than this share of them still decode: compacting copies the cache.
_COMPACT_BELOW = 0.75


class EmbeddedEngine:
    """Decodes from a PolicyModel that holds the whole depth (any tensor-parallel size, no pipeline stages)."""

    def __init__(self, model: PolicyModel, batch_size: int = 256) -> None:
        if not (model.pre_process and model.post_process):
            raise TrainingError("the embedded engine cannot decode over pipeline stages: say parallel.pipeline=1")
        self.model = model
        self.batch_size = batch_size
        self.version = 0
        #: called with (answers finished, answers asked for, tokens so far); for progress
        self.on_progress: Callable[[int, int, int], None] | None = None

    @torch.no_grad()
    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        """See Engine.generate. Raises TrainingError for NaN logits or a sequence over the model's context."""
        limit = self.model.shape.max_positions
        for r in requests:
            if not r.prompt or len(r.prompt) + params.max_new_tokens > limit:
                raise TrainingError(
                    f"a prompt of {len(r.prompt)} tokens and {params.max_new_tokens} new ones do not fit the model's "
                    f"context of {limit}; lower max_new_tokens or drop the prompt"
                )
        was_training = self.model.training
        self.model.eval()
        # Similar lengths together: less left padding. Requests for one prompt stay neighbours and share its prefill.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt))
        done: dict[int, Rollout] = {}
        try:
            for start in range(0, len(order), self.batch_size):
                batch = [requests[i] for i in order[start : start + self.batch_size]]
                for index, rollout in zip(order[start:], self._decode(batch, params), strict=False):
                    done[index] = rollout
                if self.on_progress is not None:
                    tokens = sum(len(r.tokens) for r in done.values())
                    self.on_progress(len(done), len(requests), tokens)
        finally:
            self.model.train(was_training)
        return [done[i] for i in range(len(requests))]

    def _prefill(self, requests: Sequence[Request], cache: KVCache) -> tuple[Tensor, Tensor]:
        """Run each distinct prompt once and fan its cache out. Returns (last logits [n, v], left padding [n])."""
        device = self.model.inv_freq.device
        prompts = list(dict.fromkeys(r.prompt for r in requests))
        width = max(len(p) for p in prompts)
        padding = torch.tensor([width - len(p) for p in prompts], device=device)
        tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)
        columns = torch.arange(width, device=device)
        mask = None
        if padding.any():
            seen = (columns[None] >= padding[:, None])[:, None, None, :] & (columns[:, None] >= columns[None])
            # A padded row must look at something: itself. Its value is never read.
            mask = seen | torch.eye(width, dtype=torch.bool, device=device)
        positions = (columns[None] - padding[:, None]).clamp(min=0)
        logits = self.model(tokens, position_ids=positions, attention_mask=mask)
        cache.advance(width)
        index = {p: i for i, p in enumerate(prompts)}
        rows = torch.tensor([index[r.prompt] for r in requests], device=device)
        if len(rows) != len(prompts):
            cache.select(rows)
        return logits[rows], padding[rows]

    def _decode(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        n, steps = len(requests), params.max_new_tokens
        device = self.model.inv_freq.device
        width = max(len(r.prompt) for r in requests)
        cache = KVCache(width + steps)
        keys = torch.tensor([r.key for r in requests])
        stops = torch.tensor(sorted(set(params.stop_token_ids)), device=device)
        tokens = torch.zeros(n, steps, dtype=torch.long)
        logprobs = torch.zeros(n, steps)
        lengths = torch.full((n,), steps)
        finished = torch.zeros(n, dtype=torch.bool)
        rows = torch.arange(n)  # request of each row of the batch
        active = torch.ones(n, dtype=torch.bool)  # rows of the batch that still decode
        with self.model.decoding(cache):
            logits, padding = self._prefill(requests, cache)
            for step in range(steps):
                draws = uniform(params.seed, keys[rows], step)
                chosen, chosen_logprobs = sample(logits, draws, params.temperature, params.top_p)
                live = rows[active]
                values = chosen_logprobs.cpu()[active]
                if not values.isfinite().all():
                    raise TrainingError(
                        "generation produced log-probabilities that are not finite: the weights are broken"
                    )
                tokens[live, step], logprobs[live, step] = chosen.cpu()[active], values
                ended = torch.isin(chosen, stops).cpu() & active
                lengths[rows[ended]], finished[rows[ended]] = step + 1, True
                active &= ~ended
                count = int(active.sum())
                if count == 0 or step == steps - 1:
                    break
                if count < _COMPACT_BELOW * len(rows):
                    keep = active.nonzero()[:, 0]
                    kept = keep.to(device)
                    cache.select(kept)
                    chosen, padding, rows, active = chosen[kept], padding[kept], rows[keep], active[keep]
                positions = (cache.length - padding)[:, None]
                mask = None
                if padding.any():
                    columns = torch.arange(cache.length + 1, device=device)
                    mask = (columns[None] >= padding[:, None])[:, None, None, :]
                logits = self.model(chosen[:, None], position_ids=positions, attention_mask=mask)
                cache.advance(1)
        return [
            Rollout(
                key=request.key,
                prompt=request.prompt,
                tokens=tuple(tokens[i, : lengths[i]].tolist()),
                logprobs=np.asarray(logprobs[i, : lengths[i]]),
                finished=bool(finished[i]),
                version=self.version,
            )
            for i, request in enumerate(requests)
        ]
