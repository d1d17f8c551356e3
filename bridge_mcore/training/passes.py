"""Run one pass over the parallel layout: forward-backward of all micro-batches, and what it says about the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor, nn

from bridge_mcore.config import schema
from bridge_mcore.data.sample import RL, SFT, Sample
from bridge_mcore.errors import TrainingError
from bridge_mcore.objectives.policy_gradient import clipped_surrogate, k3
from bridge_mcore.training.batch import MicroBatch, collate, count_tokens, divide
from bridge_mcore.training.policy import Policy

#: What each micro-batch adds up, in this order (the last is a maximum).
_SUMS = ("j_sft", "surrogate", "kl", "entropy", "clip_fraction", "logprob_gap_mean", "logprob_gap_max")

#: (micro-batch, the model's output) -> what Megatron's schedule wants: the loss, a token count, the values to report.
_LossOf = Callable[[MicroBatch, Tensor], tuple[Tensor, Tensor, Tensor]]


class PassRunner:
    """Computes objectives and gradients of samples under the live weights.

    All methods are collective over the model-parallel ranks of a replica (which pass the same samples) and over
    data-parallel ranks (which pass their own).
    """

    def __init__(
        self, policy: Policy, objective: schema.Objective, max_tokens: int, max_rows: int | None = None
    ) -> None:
        self.policy = policy
        self.objective = objective
        clip = objective.clip_range
        self.clip = (clip, clip) if isinstance(clip, float | int) else clip
        self.max_tokens, self.max_rows = max_tokens, max_rows
        config = policy.module.config
        # Sequence parallelism splits a micro-batch's length over tensor ranks.
        self.multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1

    def _micro_batches(self, samples: Sequence[Sample], counts: Mapping[str, int]) -> list[MicroBatch]:
        device = self.policy.platform.device
        groups = divide(samples, self.max_tokens, self.max_rows)
        if not groups:  # this rank has nothing, but must take part in what the others do: one token without weight
            blank = collate([Sample(SFT, [0, 0], 1)], {SFT: 1}, device, self.multiple)
            blank.weights[SFT].zero_()
            return [blank]
        return [collate(group, counts, device, self.multiple) for group in groups]

    def _run(self, micro_batches: list[MicroBatch], loss_of: _LossOf, forward_only: bool) -> list[Tensor]:
        """Megatron's schedule over the micro-batches; the values that `loss_of` reports, on the last stage."""

        def forward_step(batches: Iterator[MicroBatch], model: nn.Module) -> tuple[Tensor, Callable]:
            batch = next(batches)
            out = model(
                batch.tokens, labels=batch.labels, mask=batch.mask, inverse_temperature=batch.inverse_temperature
            )
            return out, lambda output: loss_of(batch, output)

        self.policy.model.train()
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(micro_batches),
            model=self.policy.model,
            num_microbatches=len(micro_batches),
            seq_length=micro_batches[0].tokens.shape[1],
            micro_batch_size=micro_batches[0].tokens.shape[0],
            forward_only=forward_only,
        )

    def global_counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Response tokens of each component over all data-parallel ranks."""
        counts = count_tokens(samples)
        if mpu.get_data_parallel_world_size() > 1:
            tensor = torch.tensor([counts[SFT], counts[RL]], device=self.policy.platform.device)
            dist.all_reduce(tensor, group=mpu.get_data_parallel_group())
            counts = {SFT: int(tensor[0]), RL: int(tensor[1])}
        return counts

    def fill_reference(self, samples: Sequence[Sample]) -> None:
        """Set `reference` of every sample to its tokens' log-probabilities under the live weights (last stage only)."""
        batches = self._micro_batches(samples, {SFT: 1, RL: 1})

        def store(batch: MicroBatch, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            for row, sample in enumerate(batch.samples):
                span = slice(sample.prompt_length - 1, len(sample.tokens) - 1)
                sample.reference = output[0, row, span].detach().cpu()
            return output.sum(), torch.zeros((), dtype=torch.int), torch.zeros(1)

        with torch.no_grad():
            self._run(batches, store, forward_only=True)

    def run(self, samples: Sequence[Sample], coefficients: Mapping[str, float]) -> dict[str, float]:
        """Add the gradient of -Σ coefficient · J to the gradient buffers (reduced), and return what was computed.

        Args:
            samples: this data-parallel rank's; of components without a coefficient they are ignored.
            coefficients: objective weight of "sft" and "rl".
        Returns:
            j_sft (mean log-likelihood per trace token), j_rl (surrogate minus KL per rollout token), kl, entropy
            (nats), clip_fraction, logprob_gap_mean, logprob_gap_max (between trainer and behaviour policy); the same
            on every rank. NaN for a component that took no part.
        Raises:
            TrainingError: if a component with a coefficient has no tokens at all.
        """
        samples = [s for s in samples if s.component in coefficients]
        counts = self.global_counts(samples)
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
            j_surrogate = (rl * surrogate).sum()
            kl = (rl * k3(rolled, batch.reference)).sum() if kl_coefficient else j_surrogate.new_zeros(())
            j_rl = j_surrogate - kl_coefficient * kl
            # The schedule minimises; every token's weight already holds the division by the global count.
            loss = -(active.get(SFT, 0.0) * j_sft + active.get(RL, 0.0) * j_rl)
            with torch.no_grad():
                gap = (rolled - batch.behaviour).abs()
                parts = [
                    j_sft,
                    j_surrogate,
                    kl,
                    (rl * entropy).sum(),
                    (rl * clipped).sum(),
                    (rl * gap).sum(),
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
        if dist.get_world_size() > 1:
            group = mpu.get_data_parallel_group()
            dist.all_reduce(sums, group=group)
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            if mpu.get_pipeline_model_parallel_world_size() > 1:
                last = mpu.get_pipeline_model_parallel_last_rank()
                for tensor in (sums, top):
                    dist.broadcast(tensor, src=last, group=mpu.get_pipeline_model_parallel_group())
        return dict(zip(_SUMS, [*sums.tolist(), top.item()], strict=True))
