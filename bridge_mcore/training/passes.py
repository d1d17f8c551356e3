"""Run one pass over the parallel layout: forward-backward of all micro-batches, and what it says about the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import lcm

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from bridge_mcore.config import schema
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.objectives.policy_gradient import clipped_surrogate, k3
from bridge_mcore.training.batch import MicroBatch, collate, count_tokens, segment_multiple, unsplit
from bridge_mcore.training.packing import SequenceCost, pack
from bridge_mcore.training.policy import Policy

#: What each micro-batch adds up, in this order (the last is a maximum).
_SUMS = (
    "j_sft", "surrogate", "kl", "entropy", "clip_fraction", "logprob_gap_mean", "logprob_gap_k3", "probability_ratio",
    "logprob_gap_max",
)  # fmt: skip

#: (micro-batch, the model's output) -> what Megatron's schedule wants: the loss, a token count, the values to report.
_LossOf = Callable[[MicroBatch, Tensor], tuple[Tensor, Tensor, Tensor]]


class PassRunner:
    """Computes objectives and gradients of samples under the live weights.

    All methods are collective over the whole layout. Every rank passes the same samples; which of them a
    data-parallel replica computes is decided here, by cost.
    """

    def __init__(
        self, policy: Policy, objective: schema.Objective, max_tokens: int, max_rows: int | None = None
    ) -> None:
        """max_tokens: per rank and micro-batch; max_rows: sequences of a micro-batch at most."""
        self.policy = policy
        self.objective = objective
        clip = objective.clip_range
        self.clip = (clip, clip) if isinstance(clip, float | int) else clip
        self.max_tokens, self.max_rows = max_tokens, max_rows
        config = policy.config
        self.cost = SequenceCost.of(policy.shape)
        self.context, self.context_rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
        # Context parallelism deals two chunks of each sequence to every rank; sequence parallelism splits a row.
        self.multiple = segment_multiple(1, self.context)
        self.tail = config.tensor_model_parallel_size if config.sequence_parallel else 1
        # An interleaved pipeline takes its micro-batches in rounds.
        self.rounds = config.pipeline_model_parallel_size if len(policy.model) > 1 else 1

    def _micro_batches(self, samples: Sequence[Sample], counts: Mapping[str, int]) -> list[MicroBatch]:
        """This replica's packed micro-batches: as many as every other replica has."""
        plan = pack(
            [len(s.tokens) - 1 for s in samples],
            self.max_tokens * self.context,
            mpu.get_data_parallel_world_size(),
            self.cost,
            multiple=self.multiple,
            max_rows=self.max_rows,
            micro_batches_multiple=self.rounds,
        )
        groups = [[samples[i] for i in group] for group in plan[mpu.get_data_parallel_rank()]]
        tail = self.tail if self.rounds == 1 else self._width(groups)
        return [
            collate(
                group,
                counts,
                self.policy.platform.device,
                multiple=self.multiple,
                tail=tail,
                context_size=self.context,
                context_rank=self.context_rank,
            )
            for group in groups
        ]

    def _width(self, groups: Sequence[Sequence[Sample]]) -> int:
        """One length of the rows for an interleaved pipeline.

        There two stages send to each other in both directions at once. The messages of such a pair are told apart by
        their order alone, so rows of different lengths could be taken for one another.
        """
        rows = [sum(-(-(len(s.tokens) - 1) // self.multiple) * self.multiple for s in group) for group in groups]
        unit = lcm(self.tail, 2 if self.context > 1 else 1)
        return -(-max(*rows, self.multiple) // (self.context * unit)) * unit

    def _run(self, micro_batches: list[MicroBatch], loss_of: _LossOf, forward_only: bool) -> list[Tensor]:
        """Megatron's schedule over the micro-batches; the values that `loss_of` reports, on the last stage."""

        def forward_step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable]:
            batch = next(batches)
            out = model(
                batch.tokens,
                labels=batch.labels,
                mask=batch.mask,
                inverse_temperature=batch.inverse_temperature,
                position_ids=batch.positions,
                attention_mask=batch.segments,
            )
            return out, lambda output: loss_of(batch, output)

        model = self.policy.model
        for chunk in model:
            chunk.train()
        iterators = [iter(micro_batches) for _ in model]
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(model) > 1 else iterators[0],
            model=model if len(model) > 1 else model[0],
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0].tokens.shape[1] * self.context,
            micro_batch_size=1,
            forward_only=forward_only,
        )

    def fill_reference(self, samples: Sequence[Sample]) -> None:
        """Set `reference` of every sample to its tokens' log-probabilities under the live weights, on every rank."""
        for sample, values in zip(samples, self.score(samples), strict=True):
            sample.reference = values

    def score(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Log-probability of each sample's response tokens under the live weights, fp32 on CPU, on every rank."""
        if not samples:
            return []
        starts = np.cumsum([0, *(s.response_length for s in samples)])
        place = {id(s): int(start) for s, start in zip(samples, starts, strict=False)}
        values = torch.zeros(int(starts[-1]), device=self.policy.platform.device)

        def store(batch: MicroBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            row = output[0, 0].detach().contiguous()
            parts = [row]
            if self.context > 1:
                parts = [torch.empty_like(row) for _ in range(self.context)]
                dist.all_gather(parts, row, group=mpu.get_context_parallel_group())
            if self.context_rank == 0:
                for sample, logprobs in zip(batch.samples, batch.rows(unsplit(parts, batch.segments)), strict=True):
                    values[place[id(sample)] :][: len(logprobs)] = logprobs
            return output.sum(), torch.zeros((), dtype=torch.int), torch.zeros(1)

        with torch.no_grad():
            self._run(self._micro_batches(samples, {SFT: 1, RL: 1}), store, forward_only=True)
        # The replicas' parts are zero elsewhere, so their sum is exact.
        dist.all_reduce(values, group=mpu.get_data_parallel_group(with_context_parallel=True))
        self._from_last_stage(values)
        values = values.cpu()
        return [values[place[id(s)] :][: s.response_length] for s in samples]

    def score_prompts(self, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Log-probability at temperature 1 of every token of each prompt but its first, fp64; as `score`."""
        return [values.double().numpy() for values in self.score([Sample(RL, tuple(p), 1) for p in prompts])]

    @staticmethod
    def _from_last_stage(tensor: Tensor) -> None:
        """Give every pipeline stage what the last one computed."""
        if mpu.get_pipeline_model_parallel_world_size() > 1:
            last = mpu.get_pipeline_model_parallel_last_rank()
            dist.broadcast(tensor, src=last, group=mpu.get_pipeline_model_parallel_group())

    def run(self, samples: Sequence[Sample], coefficients: Mapping[str, float]) -> dict[str, float]:
        """Add the gradient of -Σ coefficient · J to the gradient buffers (reduced), and return what was computed.

        Args:
            samples: the step's, the same on every rank; of components without a coefficient they are ignored.
            coefficients: objective weight of "sft" and "rl".
        Returns:
            j_sft (mean log-likelihood per trace token), j_rl (surrogate minus KL per rollout token), kl, entropy
            (nats), clip_fraction; between trainer and behaviour policy logprob_gap_mean, logprob_gap_max,
            logprob_gap_k3 (estimate of KL(behaviour ‖ trainer)), probability_ratio (mean π / behaviour); the same on
            every rank. NaN for a component that took no part.
        Raises:
            TrainingError: if a component with a coefficient has no tokens at all.
        """
        samples = [s for s in samples if s.component in coefficients]
        counts = count_tokens(samples)
        # A component with coefficient 0 (λ = 0 or 1) is still reported when its samples are there.
        active = {c: k for c, k in coefficients.items() if k != 0 or counts[c]}
        for component in active:
            if counts[component] == 0:
                raise TrainingError(f"this step has no '{component}' response tokens, so its objective is undefined")
        batches = self._micro_batches(samples, counts)
        kl_coefficient = self.objective.kl_coefficient

        def loss_of(batch: MicroBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            logprobs, entropy = output[0], output[1].detach()
            sft, rl = batch.weights[SFT], batch.weights[RL]
            j_sft = (sft * logprobs).sum()
            # Only rollout tokens: elsewhere behaviour and reference are 0, and exp would overflow to inf · 0 = NaN.
            rolled = torch.where(rl > 0, logprobs, 0.0)
            surrogate, clipped = clipped_surrogate(rolled, batch.behaviour, batch.advantages, *self.clip)
            j_surrogate = (rl * batch.correction * surrogate).sum()
            kl = (rl * k3(rolled, batch.reference)).sum() if kl_coefficient else j_surrogate.new_zeros(())
            j_rl = j_surrogate - kl_coefficient * kl
            # The schedule minimises; every token's weight already holds the division by the global count.
            loss = -(active.get(SFT, 0.0) * j_sft + active.get(RL, 0.0) * j_rl)
            with torch.no_grad():
                difference = rolled - batch.behaviour
                gap = difference.abs()
                parts = [
                    j_sft,
                    j_surrogate,
                    kl,
                    (rl * entropy).sum(),
                    (rl * clipped).sum(),
                    (rl * gap).sum(),
                    (rl * k3(batch.behaviour, rolled)).sum(),
                    (rl * difference.exp()).sum(),
                    gap.max(),
                ]
                report = torch.stack([p.detach().double() for p in parts])
            return loss, torch.zeros((), dtype=torch.int, device=loss.device), report

        totals = self._totals(self._run(batches, loss_of, forward_only=False))
        totals["j_rl"] = totals["surrogate"] - kl_coefficient * totals["kl"]
        if SFT not in active:
            totals["j_sft"] = math.nan
        if RL not in active:
            totals.update(dict.fromkeys((*_SUMS[1:], "j_rl"), math.nan))
        return totals

    def _totals(self, reports: list[Tensor]) -> dict[str, float]:
        """Sum the micro-batches' reports over the run: micro-batches, data-parallel ranks, then to every stage."""
        device = self.policy.platform.device
        stacked = torch.stack(reports) if reports else torch.zeros(1, len(_SUMS), dtype=torch.float64, device=device)
        sums, top = stacked.sum(0)[:-1].contiguous(), stacked[:, -1].amax()[None]
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(sums, group=group)
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
        for tensor in (sums, top):
            self._from_last_stage(tensor)
        return dict(zip(_SUMS, [*sums.tolist(), top.item()], strict=True))
