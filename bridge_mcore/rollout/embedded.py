"""The engine inside the trainer: batched decoding with a key-value cache from the live weights.

There is nothing to synchronise: what acts is what learns. It suits small models; large ones want SGLang or vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from bridge_mcore.errors import TrainingError
from bridge_mcore.model.attention import KVCache
from bridge_mcore.model.gpt import PolicyModel, decoding
from bridge_mcore.rollout.engine import Request, Rollout, SamplingParams
from bridge_mcore.rollout.sampling import sample, uniform
from bridge_mcore.rollout.stages import Stages
from bridge_mcore.rollout.stop_text import StopTexts

#: Rows leave the batch once fewer than this share of them still decode: compacting copies the cache.
_COMPACT_BELOW = 0.75


class EmbeddedEngine:
    """Decodes from this rank's chunks of the model, together with its tensor- and pipeline-parallel peers.

    Those peers pass the same requests; context-parallel ranks decode requests of their own, as replicas do. Pipeline
    stages wait for one another: large models want SGLang or vLLM.
    """

    def __init__(
        self,
        chunks: Sequence[PolicyModel],
        batch_size: int = 256,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        """decode: token ids to text; without it no text can end an answer."""
        self.chunks = list(chunks)
        self.decode = decode
        self.stages = Stages(chunks)
        self.device = chunks[0].inv_freq.device
        self.batch_size = batch_size
        self.version = 0
        #: called with (answers finished, answers asked for, tokens so far); for progress
        self.on_progress: Callable[[int, int, int], None] | None = None

    def refresh(self, version: int, slot: str = "theta") -> dict[str, float]:
        """See Engine.refresh: what acts is what learns already."""
        self.version = version
        return {}

    def counts(self) -> dict[str, float]:
        """See Engine.counts."""
        return {}

    def rest(self) -> dict[str, float]:
        """See Engine.rest."""
        return {}

    def close(self) -> None:
        """See Engine.close."""

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[Rollout]:
        """See Engine.generate. Raises TrainingError for NaN logits or a sequence over the model's context."""
        done: dict[int, Rollout] = {}
        tokens = 0
        for finished in self.stream(requests, params):
            done |= finished
            if finished and self.on_progress is not None:
                tokens += sum(len(r.tokens) for r in finished.values())
                self.on_progress(len(done), len(requests), tokens)
        return [done[i] for i in range(len(requests))]

    @torch.no_grad()
    def stream(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[dict[int, Rollout]]:
        """After every token that is decoded, the answers that it has finished, by the place of their requests.

        Raises TrainingError as `generate` does.
        """
        limit = self.chunks[0].shape.max_positions
        for r in requests:
            if not r.prompt or len(r.prompt) + params.max_new_tokens > limit:
                raise TrainingError(
                    f"a prompt of {len(r.prompt)} tokens and {params.max_new_tokens} new ones do not fit the model's "
                    f"context of {limit}; lower max_new_tokens or drop the prompt"
                )
        # Similar lengths together: less left padding. Requests for one prompt stay neighbours and share its prefill.
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), requests[i].prompt))
        was_training = self.chunks[0].training
        for chunk in self.chunks:
            chunk.eval()
        try:
            for start in range(0, self.stages.most(len(order)), self.batch_size):
                batch = order[start : start + self.batch_size]
                for finished in self._decode([requests[i] for i in batch], params):
                    yield {batch[i]: rollout for i, rollout in finished.items()}
        finally:
            for chunk in self.chunks:
                chunk.train(was_training)

    def _prefill(self, prompts: Sequence[tuple[int, ...]], cache: KVCache) -> tuple[Tensor | None, Tensor]:
        """Run each distinct prompt once and fan its cache out. Returns (last logits [n, v] on the last stage, left
        padding [n])."""
        distinct = list(dict.fromkeys(prompts))
        width = max(len(p) for p in distinct)
        padding = torch.tensor([width - len(p) for p in distinct], device=self.device)
        tokens = torch.tensor([[0] * (width - len(p)) + list(p) for p in distinct], device=self.device)
        columns = torch.arange(width, device=self.device)
        mask = None
        if padding.any():
            seen = (columns[None] >= padding[:, None])[:, None, None, :] & (columns[:, None] >= columns[None])
            # A padded row must look at something: itself. Its value is never read.
            mask = seen | torch.eye(width, dtype=torch.bool, device=self.device)
        positions = (columns[None] - padding[:, None]).clamp(min=0)
        logits = self.stages(tokens, positions, mask)
        cache.advance(width)
        index = {p: i for i, p in enumerate(distinct)}
        rows = torch.tensor([index[p] for p in prompts], device=self.device)
        if len(rows) != len(distinct):
            cache.select(rows)
        return None if logits is None else logits[rows], padding[rows]

    def _sample(self, logits: Tensor | None, keys: Tensor, step: int, params: SamplingParams) -> tuple[Tensor, Tensor]:
        """(token [n], its log-probability [n]) of each row, the same on every stage."""
        if logits is not None:
            chosen, logprobs = sample(
                logits, uniform(params.seed, keys, step), params.temperature, params.top_p, params.top_k
            )
        else:
            chosen = torch.empty(len(keys), dtype=torch.long, device=self.device)
            logprobs = torch.empty(len(keys), device=self.device)
        self.stages.share(chosen, logprobs)
        return chosen, logprobs

    def _decode(self, requests: Sequence[Request], params: SamplingParams) -> Iterator[dict[int, Rollout]]:
        """Decode one batch; see `stream`. An empty one keeps step, with one row that nobody reads, while peers' experts
        need it."""
        n, steps = len(requests), params.max_new_tokens
        prompts = [r.prompt for r in requests] or [(0,)]
        cache = KVCache(max(len(p) for p in prompts) + steps)
        keys = torch.tensor([r.key for r in requests] or [0])
        stops = torch.tensor(sorted(set(params.stop_token_ids)), device=self.device)
        texts = self._stop_texts(params)
        tokens = torch.zeros(n, steps, dtype=torch.long)
        logprobs = torch.zeros(n, steps)
        lengths = torch.full((n,), steps)
        finished = torch.zeros(n, dtype=torch.bool)
        rows = torch.arange(len(prompts))  # request of each row of the batch
        active = torch.full((len(prompts),), n > 0)  # rows of the batch that still decode

        def answers(places: list[int]) -> dict[int, Rollout]:
            return {
                i: Rollout(
                    key=requests[i].key,
                    prompt=requests[i].prompt,
                    tokens=tuple(tokens[i, : lengths[i]].tolist()),
                    logprobs=np.array(logprobs[i, : lengths[i]]),
                    finished=bool(finished[i]),
                    version=self.version,
                )
                for i in places
            }

        with decoding(self.chunks, cache):
            logits, padding = self._prefill(prompts, cache)
            for step in range(steps):
                chosen, chosen_logprobs = self._sample(logits, keys[rows], step, params)
                live = rows[active]
                values = chosen_logprobs.cpu()[active]
                if not values.isfinite().all():
                    raise TrainingError(
                        "generation produced log-probabilities that are not finite: the weights are broken"
                    )
                tokens[live, step], logprobs[live, step] = chosen.cpu()[active], values
                ended = torch.isin(chosen, stops).cpu() & active
                if texts is not None:
                    for row in (active & ~ended).nonzero()[:, 0].tolist():
                        answer = tokens[rows[row], : step + 1]  # its end is decoded at each step, the whole rarely
                        near = texts.stand_in(answer[-texts.window :].tolist())
                        ended[row] = near and texts.stand_in(answer.tolist())
                lengths[rows[ended]], finished[rows[ended]] = step + 1, True
                active &= ~ended
                count = int(active.sum())
                yield answers(rows[ended].tolist())
                if step == steps - 1 or not self.stages.any(count > 0):
                    break
                if count < _COMPACT_BELOW * len(rows) and (count or len(rows) > 1):
                    keep = active.nonzero()[:, 0] if count else torch.zeros(1, dtype=torch.long)
                    kept = keep.to(self.device)
                    cache.select(kept)
                    chosen, padding, rows, active = chosen[kept], padding[kept], rows[keep], active[keep]
                positions = (cache.length - padding)[:, None]
                mask = None
                if padding.any():
                    columns = torch.arange(cache.length + 1, device=self.device)
                    mask = (columns[None] >= padding[:, None])[:, None, None, :]
                logits = self.stages(chosen[:, None], positions, mask)
                cache.advance(1)
        yield answers(rows[active].tolist())

    def _stop_texts(self, params: SamplingParams) -> StopTexts | None:
        if not params.stop_texts:
            return None
        if self.decode is None:
            raise ValueError("an engine that was given no decoder cannot see stop texts")
        return StopTexts(params.stop_texts, self.decode)
